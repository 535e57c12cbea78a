"""One table, four formats: Markdown, LaTeX (booktabs), CSV, HTML.

A `Table` is columns, rows of cells and panels (which columns stand together where a page is narrow; CSV has all of them).
A cell without a number carries the reason; equal reasons share one footnote.
"""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
import re
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

from apex.escape import markdown
from paper_tables.stats import Summary


@dataclass(frozen=True)
class Cell:
    """`text` is what a reader sees; `summary` the number behind it (CSV); `note` becomes a footnote; `merge` joins equal neighbours;
    `strong` is bold (not in CSV)."""

    text: str
    summary: Summary | None = None
    note: str = ""
    merge: bool = False
    strong: bool = False


EMPTY = Cell("")


@dataclass(frozen=True)
class Column:
    """`group` is the heading above neighbouring columns; `numeric` columns are aligned right and have intervals in CSV."""

    key: str
    head: str
    group: str = ""
    numeric: bool = True


@dataclass
class Line:
    """One row; `section` starts a new block with that heading."""

    cells: dict[str, Cell]
    section: str = ""


@dataclass
class Table:
    name: str
    title: str
    caption: str
    columns: list[Column]
    remark: str = ""  # what holds for every table of the folder; a page that shows several says it once
    lines: list[Line] = field(default_factory=list)
    panels: list[tuple[str, list[str]]] = field(default_factory=list)

    def cell(self, line: Line, key: str) -> Cell:
        return line.cells.get(key, EMPTY)

    def without(self, keys: Collection[str]) -> Self:
        """The table less these columns, in every panel."""
        columns = [column for column in self.columns if column.key not in keys]
        panels = [(title, [key for key in shown if key not in keys]) for title, shown in self.panels]
        return replace(self, columns=columns, panels=panels)

    def views(self) -> list[tuple[str, list[Column]]]:
        """(heading, columns) of each panel."""
        by_key = {column.key: column for column in self.columns}
        return [(title, [by_key[key] for key in keys]) for title, keys in self.panels] or [("", self.columns)]

    @property
    def words(self) -> str:
        return f"{self.caption} {self.remark}".strip()

    def notes(self, columns: list[Column] | None = None) -> dict[str, str]:
        """Footnote text -> its mark (a, b, ...), in order of appearance; those of `columns`, or of all."""
        texts = dict.fromkeys(self.cell(line, column.key).note for line in self.lines for column in columns or self.columns)
        marks = itertools.chain("abcdefghijklmnopqrstuvwxyz", (f"z{number}" for number in itertools.count(1)))
        return {text: mark for text, mark in zip((text for text in texts if text), marks, strict=False)}


def _runs(table: Table, line: Line, columns: list[Column]) -> list[tuple[Cell, Column, int]]:
    """Cells of a line; equal neighbours that may merge come once, with the number of columns they span."""
    runs: list[tuple[Cell, Column, int]] = []
    for column in columns:
        cell = table.cell(line, column.key)
        if runs and cell.merge and runs[-1][0] == cell and runs[-1][1].group == column.group:
            runs[-1] = (cell, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((cell, column, 1))
    return runs


def _groups(columns: list[Column]) -> list[tuple[str, int]]:
    return [(group, len(list(members))) for group, members in itertools.groupby(columns, key=lambda column: column.group)]


# ---------------------------------------------------------------- Markdown

_md = lru_cache(maxsize=1 << 16)(markdown)  # most texts stand in many cells


def to_markdown(table: Table) -> str:
    """GitHub Markdown. It has no spanning heads, so a column's group stands in its head."""
    notes = table.notes()
    out = [f"## {_md(table.title)}", "", _md(table.words), ""]
    for title, columns in table.views():
        if title:
            out += [f"### {_md(title)}", ""]
        out.append("| " + " | ".join(_md(f"{column.group}: {column.head}" if column.group else column.head) for column in columns) + " |")
        out.append("|" + "|".join(" ---: " if column.numeric else " :--- " for column in columns) + "|")
        for line in table.lines:
            if line.section:
                out.append("| **" + _md(line.section) + "** |" + " |" * (len(columns) - 1))
            cells = []
            for cell, _, width in _runs(table, line, columns):  # merged neighbours have one mark
                text = f"**{_md(cell.text)}**" if cell.strong else _md(cell.text)
                cells += [text + (f" <sup>{notes[cell.note]}</sup>" if cell.note else ""), *[text] * (width - 1)]
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    out += [f"<sup>{mark}</sup> {_md(text)}  " for text, mark in notes.items()]
    return "\n".join(out).rstrip() + "\n"


# ---------------------------------------------------------------- LaTeX

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}", "]": "{]}",
    "–": r"\textendash{}", "—": r"\textemdash{}", "“": "``", "”": "''", "’": "'", "×": r"$\times$", "±": r"$\pm$", "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "≥": r"$\ge$", "≤": r"$\le$", "→": r"$\to$", "λ": r"$\lambda$", "α": r"$\alpha$", "Σ": r"$\Sigma$",
    "·": r"$\cdot$", "µ": r"$\mu$", "…": r"\ldots{}", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip


@lru_cache(maxsize=1 << 16)
def tex_escape(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, symbols as maths, what pdfTeX has no glyph for as `?`."""
    return "".join(_TEX.get(char, char if ord(char) < 0x250 and char.isprintable() else "?") for char in text).replace("--", "-{}-")


PAGE_LINES = 46  # of a LaTeX page
LONG, NARROW, WIDE = 30, 12, 44  # characters: what is longer is wrapped, into columns from NARROW to WIDE


def _wrapped(table: Table, columns: list[Column]) -> dict[str, int]:
    """Column with long texts -> its width in characters: somewhat above the median of its texts, and no word is wider."""
    widths = {}
    for column in columns:
        texts = [cell.text for line in table.lines if (cell := table.cell(line, column.key)).text and not cell.merge]
        if not column.numeric and max(map(len, texts), default=0) > LONG:
            word = max(len(word) for text in texts for word in re.split(r"(?<=[/_])|\s", text))
            widths[column.key] = min(WIDE, max(NARROW, word, round(1.3 * statistics.median(map(len, texts)))))
    return widths


def _height(table: Table, line: Line, widths: dict[str, int]) -> int:
    """Printed lines of a row."""
    return max([math.ceil(len(table.cell(line, key).text) / width) for key, width in widths.items()] + [1]) + bool(line.section)


def _pages(table: Table, widths: dict[str, int]) -> list[list[Line]]:
    """The lines in pieces that fit a page, parted where a section begins if one does in the second half of the page."""
    pages, rest = [], table.lines
    while True:
        ends = list(itertools.accumulate(_height(table, line, widths) for line in rest))
        if len(rest) < 2 or ends[-1] <= PAGE_LINES:
            return [*pages, rest]
        most = max(1, sum(end <= PAGE_LINES for end in ends))
        at = next((index for index in range(most, 0, -1) if ends[index - 1] > PAGE_LINES // 2 and rest[index].section), most)
        pages.append(rest[:at])
        rest = rest[at:]


def _tex_cell(cell: Cell, wrapped: bool) -> str:
    text = tex_escape(cell.text)
    if wrapped:
        text = text.replace("/", "/\\allowbreak{}").replace(r"\_", r"\_\allowbreak{}")
    return rf"\textbf{{{text}}}" if cell.strong else text


def _tex_panel(table: Table, columns: list[Column], notes: dict[str, str], lines: list[Line], widths: dict[str, int]) -> list[str]:
    """One tabular, scaled down where it is wider than the page."""
    kinds = [
        rf">{{\raggedright\arraybackslash}}p{{{0.5 * widths[c.key]:g}em}}" if c.key in widths else "r" if c.numeric else "l"
        for c in columns
    ]
    out = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    out += [r"\begin{tabular}{" + "".join(kinds) + "}", r"\toprule"]
    groups, start, rules, heads = _groups(columns), 1, [], []
    for name, width in groups:
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(name)}}}" if name else " & " * (width - 1))
        if name:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    if rules:
        out += [" & ".join(heads) + r" \\", " ".join(rules)]
    out += [" & ".join(tex_escape(column.head) for column in columns) + r" \\", r"\midrule"]
    for index, line in enumerate(lines):
        if line.section:
            out += [r"\addlinespace"] * (index > 0)
            out.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{tex_escape(line.section)}}}}} \\")
        cells = []
        for cell, column, width in _runs(table, line, columns):
            text = _tex_cell(cell, column.key in widths)
            text += rf"\textsuperscript{{{notes[cell.note]}}}" if cell.note else ""
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{text}}}" if width > 1 else text)
        out.append(" & ".join(cells) + r" \\")
    return [*out, r"\bottomrule", r"\end{tabular}}"]


def to_latex(table: Table) -> str:
    """A `table` environment for each panel and page (packages array, booktabs and graphicx); the first has the whole caption."""
    out = [f"% {tex_escape(table.title)}. Needs \\usepackage{{array,booktabs,graphicx}}."]
    for index, (title, columns) in enumerate(table.views()):
        widths = _wrapped(table, columns)
        for number, lines in enumerate(_pages(table, widths)):
            notes = replace(table, lines=lines).notes(columns)
            parts = [f"{title}." if title else "", "Continued." if number else "", table.words if index == number == 0 else ""]
            words = tex_escape(" ".join(filter(None, parts)))
            out += [
                r"\begin{table}[p]",
                r"\centering\scriptsize\setlength{\tabcolsep}{3.5pt}",
                rf"\caption{{\textbf{{{tex_escape(table.title)}.}} {words}}}",
            ]
            out += [rf"\label{{tab:{table.name}}}"] * (index == number == 0)
            out += _tex_panel(table, columns, notes, lines, widths)
            if notes:
                words = r"\quad ".join(rf"\textsuperscript{{{mark}}}{tex_escape(text)}" for text, mark in notes.items())
                out.append(r"\par\smallskip\raggedright " + words)
            out.append(r"\end{table}")
    return "\n".join([*out, ""])


def latex_document(names: Iterable[str]) -> str:
    """A document that inputs the tables, to see and to compile them: `pdflatex all.tex`."""
    body = "\n".join(f"\\input{{{name}.tex}}\n\\clearpage" for name in names)
    packages = "\\usepackage[utf8]{inputenc}\n\\usepackage{array,booktabs,graphicx}\n\\usepackage[a4paper,landscape,margin=12mm]{geometry}"
    return f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"


# ---------------------------------------------------------------- CSV


def to_csv(table: Table) -> str:
    """Full precision; a column with intervals gets `_ci_low` and `_ci_high`; the last column says why cells are empty."""
    ranged = {
        column.key: any((found := table.cell(line, column.key).summary) and found.low is not None for line in table.lines)
        for column in table.columns
    }
    head, sectioned = ["section"] if any(line.section for line in table.lines) else [], any(line.section for line in table.lines)
    for column in table.columns:
        head += [column.key, f"{column.key}_ci_low", f"{column.key}_ci_high"] if ranged[column.key] else [column.key]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "remarks"])
    section = ""
    for line in table.lines:
        section = line.section or section
        out: list[object] = [section] if sectioned else []
        notes = {}
        for column in table.columns:
            cell = table.cell(line, column.key)
            if cell.note:
                notes.setdefault(cell.note, []).append(column.key)
            found = cell.summary
            out.append(_number(found.value) if found else cell.text)
            if ranged[column.key]:
                out += [_number(found.low if found else None), _number(found.high if found else None)]
        writer.writerow([*out, "; ".join(f"{', '.join(keys)}: {note}" for note, keys in notes.items())])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# ---------------------------------------------------------------- HTML

SCRIPT = Path(__file__).resolve().parent / "page.js"
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1b1f24;background:#fff}
body{max-width:1760px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;margin:.2em 0 .4em}h2{font-size:1.25rem;margin:2.2em 0 .4em;padding-top:.6em;border-top:1px solid #e3e6ea}
h3{font-size:1rem;margin:1.4em 0 .3em}
p,figcaption{max-width:100ch}figure{margin:1em 0}figure img{max-width:min(100%,1300px);height:auto;display:block;margin:.4em 0}
.scroll{overflow-x:auto;margin:.4em 0 .8em}
table{border-collapse:collapse;font-size:12.5px;font-variant-numeric:tabular-nums}sup{line-height:0}
th,td{padding:2px 7px;text-align:left;vertical-align:top;white-space:nowrap}td.n,th.n{text-align:right}
thead th{border-bottom:1px solid #9aa1a9;font-weight:600;vertical-align:bottom}
thead tr:first-child th{border-top:2px solid #444c55}th.g{text-align:center;border-bottom:1px solid #c9ced4}
tbody tr:last-child td{border-bottom:2px solid #444c55}tbody tr:hover td{background:#f4f6f8}
tr.s td{font-style:italic;padding-top:10px;background:#fff}td.m{color:#6b737c}td.m:not([colspan]){text-align:right}
th:first-child:not(.g),td:first-child{position:sticky;left:0;background:#fff}
td.wrap{white-space:normal;min-width:16em}
.notes,.small{font-size:12.5px;color:#48505a}.notes p{margin:.15em 0;max-width:110ch}
nav a,.formats a{margin-right:1em}a{color:#0b5cad}
th[aria-sort]{cursor:pointer}th[aria-sort=ascending]::after{content:" ↑"}th[aria-sort=descending]::after{content:" ↓"}
tr[hidden]{display:none}input.filter{font:inherit;font-size:12.5px;padding:2px 6px;margin:.4em 0 0;width:22em;max-width:100%}
figure img{cursor:zoom-in}
figure.zoom{position:fixed;inset:0;margin:0;padding:12px;overflow:auto;background:#fff;z-index:9}
figure.zoom img{max-width:none;cursor:zoom-out}
.box{border-left:4px solid #c8862a;background:#fdf7ec;padding:.6em 1em;margin:1em 0;max-width:80ch}
"""


def html_fragment(table: Table, heading: str = "h2", remark: bool = True) -> str:
    """The table with its title, caption and footnotes, for a page that has `STYLE`; `remark` False leaves the shared words out."""
    notes = table.notes()
    out = [
        f'<{heading} id="{html.escape(table.name)}">{html.escape(table.title)}</{heading}>',
        f"<p>{html.escape(table.words if remark else table.caption)}</p>",
    ]
    for title, columns in table.views():
        if title:
            out.append(f"<h3>{html.escape(title)}</h3>")
        out.append('<div class="scroll"><table><thead>')
        if any(column.group for column in columns):
            heads = (f'<th colspan="{width}" class="{"g" if name else ""}">{html.escape(name)}</th>' for name, width in _groups(columns))
            out.append(f"<tr>{''.join(heads)}</tr>")
        out.append(
            "<tr>" + "".join(f'<th class="{"n" if column.numeric else ""}">{html.escape(column.head)}</th>' for column in columns) + "</tr>"
        )
        out.append("</thead><tbody>")
        for line in table.lines:
            if line.section:
                out.append(f'<tr class="s"><td colspan="{len(columns)}">{html.escape(line.section)}</td></tr>')
            cells = []
            for cell, column, width in _runs(table, line, columns):
                mark = f"<sup>{notes[cell.note]}</sup>" if cell.note else ""
                kind = (
                    "m"
                    if width > 1 or (cell.note and cell.summary is None)
                    else "n"
                    if column.numeric
                    else "wrap"
                    if len(cell.text) > 40
                    else ""
                )
                text = f"<b>{html.escape(cell.text)}</b>" if cell.strong else html.escape(cell.text)
                span = f' colspan="{width}"' if width > 1 else ""
                cells.append(f'<td class="{kind}"{span}>{text}{mark}</td>')
            out.append(f"<tr>{''.join(cells)}</tr>")
        out.append("</tbody></table></div>")
    if notes:
        out.append(
            '<div class="notes">' + "".join(f"<p><sup>{mark}</sup> {html.escape(text)}</p>" for text, mark in notes.items()) + "</div>"
        )
    return "\n".join(out)


def page(title: str, body: str) -> str:
    """A complete HTML page with its style and script in it: no outside resource. Tables sort and filter, pictures open at full size."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    script = SCRIPT.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def all_formats(table: Table) -> dict[str, str]:
    """File name -> content, in the four formats."""
    return {
        f"{table.name}.md": to_markdown(table),
        f"{table.name}.tex": to_latex(table),
        f"{table.name}.csv": to_csv(table),
        f"{table.name}.html": page(table.title, html_fragment(table)),
    }
