"""index.html: headline, figures, tables and the audit on one page, with no outside resource."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from paper_tables import audit, build, published, records, tuning
from paper_tables.render import html_fragment
from paper_tables.render import page as html_page
from paper_tables.view import View

# Figure -> its title and what to see in it. `sweep_<row>` and `grid_nfe<K>` come beside these.
CAPTIONS = {
    "quality_latency": ("Quality against latency", "Up and left is better."),
    "grid": ("Pictures at one step", "Rows by family, prompts across. Pixels are enlarged, not smoothed."),
    "grid_unseen": ("Unseen combinations", "Prompts that no training image showed."),
    "grid_samples": ("Four samples", "Four images of one prompt: a collapsed generator draws one picture four times."),
    "tasks": ("GenEval by task", "Dark is high."),
    "coverage_quality": ("Coverage against quality", "Spread and recall of a prompt's images against GenEval."),
    "nfe": ("Metrics against NFE", "Dashed: the guided teacher of many steps; dotted: real renders."),
    "paired": ("Every row against APEX", "Left of the line: below it. An interval that holds zero tells nothing apart."),
    "cost": ("What training costs", "Where the budget goes, what stands in memory, and how long it takes."),
    "quality_memory": ("Quality against memory", "What a discriminator or a fake-score network adds lies to the right."),
    "quality_budget": ("Quality against the training budget", "What more training gives."),
    "training": ("Training", "Losses, gradient norms, logits and diagnostics as logged; rows compare at equal budget."),
    "nfe_sweep": ("From one step to many", "Whether a row gains from more steps, and where the teacher overtakes it."),
    "tuning": ("Tuning", "Every candidate of every method on the validation prompts."),
    "relative": (
        "Every row against the guided teacher",
        "Right of the dashed line is above the teacher; of FID and latency, left is better.",
    ),
    "repeated": ("This run and the committed one", "Left of the line: below the committed run. Most intervals should hold zero."),
    "table1": ("The paper's Table 1 and ours", "Left as published, right as measured here; the axes differ."),
    "table2": ("The paper's Table 2", "As published; the same tasks measured here stand above."),
    "table3": ("The paper's Table 3", "As published. Five rows have their overall printed first; see the audit."),
    "table4": ("The paper's Table 4", "As published. Some overalls do not follow from their columns; see the audit."),
    "shift_visibility": ("Shift visibility", "Whether the network sees the shifted condition, measured before training."),
    "calibration": ("Calibration of GenEval", "Real renders, spoiled more and more: every curve must fall."),
}
FIRST = ("quality_latency", "grid", "grid_nfe", "grid_unseen", "grid_samples")
# Table -> the figures that show it, which stand below it; a name that ends in _ is the start of several.
PLOTS = {
    "comparison": ("tasks", "nfe", "coverage_quality"),
    "paired": ("paired",),
    "cost": ("cost", "quality_memory", "quality_budget"),
    "stability": ("training",),
    "sweep": ("nfe_sweep", "sweep_"),
    "tuning": ("tuning",),
    "relative": ("relative",),
    "world": ("calibration", "shift_visibility"),
    "repeated": ("repeated",),
    "table1": ("table1",),
    "table2": ("table2",),
    "table3": ("table3",),
    "table4": ("table4",),
}


def caption(name: str) -> tuple[str, str]:
    """Title and words of a figure."""
    if name in CAPTIONS:
        return CAPTIONS[name]
    if name.startswith("sweep_"):
        return f"{name.removeprefix('sweep_')}: few steps to many", "One row; prompts across, NFE down; the same prompts and seed."
    return f"Pictures at {name.removeprefix('grid_nfe')} steps", "As above, with more steps."


def _number(name: str) -> tuple[int, str]:
    """Sorts grid_nfe10 after grid_nfe2."""
    digits = name.removeprefix("grid_nfe")
    return (int(digits), "") if digits.isdigit() else (0, name)


def _like(names: Iterable[str], wanted: str) -> list[str]:
    """Those that `wanted` means: itself, or all that begin so where it is the start of several."""
    several = wanted.endswith("_") or wanted == "grid_nfe"
    return sorted((name for name in names if (name.startswith(wanted) if several else name == wanted)), key=_number)


def ordered(names: Iterable[str]) -> list[str]:
    """The figures in the page's order: the first ones, then table by table."""
    names = list(names)
    wanted = [*FIRST, *(plot for plots in PLOTS.values() for plot in plots)]
    return [name for one in wanted for name in _like(names, one)]


MOST_SENTENCES = 6


def headline(view: View) -> str:
    """One sentence per row at NFE 1, the best first: GenEval, its share of the teacher's, spread. Of many rows each family's best."""
    trained = [row for row in view.rows if not view.images_only(row)]
    known = {row: score for row in trained if (score := view.get((row, 1), "geneval/overall"))}
    rows = sorted(known, key=lambda row: -known[row].value)
    if len(rows) > MOST_SENTENCES:
        best = {view.families[row]: row for row in reversed(rows)}
        rows = [row for row in rows if row in (*best.values(), view.baseline)]
    out = []
    for row in rows:
        score, share, spread = known[row], view.relative((row, 1), "geneval/overall"), view.get((row, 1), "coverage/spread")
        marks = f" ({html.escape(', '.join(remarks))})" if (remarks := view.remarks(row, 1)) else ""
        words = f"<b>{html.escape(row)}</b>{marks} at NFE 1: GenEval {score.value:.2f}"
        if share and share.low is not None:
            words += f", {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] of the guided {view.teacher[1]}-step teacher's"
        out.append(words + (f"; spread {spread.value:.2f}" if spread else "") + ".")
    if len(rows) < len(known):
        out.append(f"These are the best of each family of {len(known)} rows; all of them are below.")
    levels = {
        f"guided teacher, {view.teacher[1]} steps": view.teacher,
        "teacher, 1 step": ("teacher", 1),
        "real renders": ("real", 0),
        "renders of another prompt": ("shuffled", 0),
    }
    told = [f"{name} {found.value:.2f}" for name, key in levels.items() if (found := view.get(key, "geneval/overall"))]
    return "<br>".join([*out, f"For comparison, GenEval of: {', '.join(told)}."] if told else out)


def _figure(name: str, source: str = "", more: str = "") -> str:
    title, words = map(html.escape, caption(name))
    words = f"{words} {html.escape(more)}".strip()
    return (
        f'<figure id="{html.escape(f"figure-{name}")}"><h3>{title}</h3><figcaption>{words}</figcaption>'
        f'<img src="{source or quote(name + ".png")}" alt="{title}" loading="lazy"></figure>'
    )


def _links(figures: Iterable[str]) -> str:
    return " ".join(f'<a href="#{quote(f"figure-{name}")}">{html.escape(caption(name)[0])}</a>' for name in figures)


def gallery(folder: Path, figures: list[str]) -> str:
    """All picture grids on one page that holds them, for the report: it has no files beside it."""
    names = [name for name in figures if name.startswith(("grid", "sweep_"))]
    links = _links(names)
    sources = {name: "data:image/png;base64," + base64.b64encode((folder / f"{name}.png").read_bytes()).decode() for name in names}
    shown = [_figure(name, source) for name, source in sources.items()]
    return html_page(
        "Pictures", "\n".join(["<h1>Pictures</h1>", "<p>A click shows one at its full size.</p>", f"<nav>{links}</nav>", *shown])
    )


def index(view: View, figures: list[str]) -> str:
    """The whole page; `figures` names the PNG files beside it."""
    data = published.load()
    tables = [*build.tables(view, data)]
    profile = ", ".join(map(str, view.all_values("profile"))) or "results"
    body = [f"<h1>Results: {html.escape(profile)}</h1>", f'<p class="box">{headline(view)}</p>']
    if view.origin:
        body.append(f'<p class="box">{html.escape(view.origin_words)}</p>')
    if view.not_run:
        body.append(f'<p class="box">Named by the profile and not run yet: {html.escape(", ".join(view.not_run))}.</p>')
    body.append(f"<p>{html.escape(tables[0].remark)}</p>")
    findings = audit.findings_table(audit.run(data))
    if view.tuning:
        tried = tuning.table(tuning.read(view.tuning))
        tried.caption = f"{records.reference_words(view.tuning)} {tried.caption}".strip()
        tables.insert([table.name for table in tables].index("relative"), tried)
    shown = {name: _figure(name, more="" if name in ("calibration", "tuning") else view.remarked_words) for name in figures}
    links = " ".join(f'<a href="#{quote(table.name)}">{html.escape(table.title)}</a>' for table in [*tables, findings])
    body.append(f"<nav>Tables: {links}</nav>")
    body.append(f"<nav>Figures: {_links(shown)}</nav>")
    body += [shown.pop(name) for one in FIRST for name in _like(figures, one)]
    for table in tables:
        body.append(html_fragment(table, remark=False))
        body += [shown.pop(name) for one in PLOTS.get(table.name, ()) for name in _like(figures, one) if name in shown]
    body += [*shown.values(), html_fragment(findings, remark=False)]
    return html_page(f"Results: {profile}", "\n".join(body))
