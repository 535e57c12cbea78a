"""Cases of pages: what comes from records, folders and configuration is shown as it is, and nothing of it acts."""

from __future__ import annotations

import csv
import functools
import html.parser
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from docutils import nodes
from docutils.core import publish_doctree
from matplotlib.figure import Figure
from PIL import Image

from apex import card
from apex.config import load
from paper_tables import claims, page, plotting, render
from paper_tables.expected import Expected
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.view import View
from tests.bad_inputs.case import Case
from tests.paper_tables import conftest as synthetic

ROOT = Path(__file__).resolve().parents[2]
OURS = {  # every tag that pages of this suite have
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "b", "br", "nav", "a", "div", "table", "thead", "tbody", "tr",
    "th", "td", "sup", "figure", "figcaption", "img", "script",
}  # fmt: skip


class Read(html.parser.HTMLParser):
    """What a browser sees of a page: tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def shows(text: str, name: str) -> None:
    """The page has the name as words, and nothing in it is markup that the suite does not write."""
    seen = Read(text)
    assert set(seen.tags) <= OURS and seen.tags.count("script") <= 1, set(seen.tags) - OURS
    assert {key for key, _ in seen.attributes} <= {
        "lang", "charset", "name", "content", "id", "class", "colspan", "href", "src", "alt", "loading",
    }  # fmt: skip
    assert not [value for _, value in seen.attributes if "javascript:" in value.lower()]
    assert name in seen.words, name


@functools.cache
def view_of(name: str) -> View:
    """Results in which one row has that name."""
    folder = Path(tempfile.mkdtemp(prefix="apex-cases-"))
    synthetic.build(folder, {("real", 0): 0.9, ("teacher", 25): 0.8, ("apex", 1): 0.6, (name, 1): 0.7})
    synthetic.bring(folder, name + "!", 1, 0.5, source=name)
    return View.load(folder)


def table_of(name: str) -> Table:
    """The name in every place that a table has for text."""
    columns = [Column("row", name, numeric=False), Column("value", "value", group=name)]
    lines = [Line({"row": Cell(name, note=name), "value": Cell(name, strong=True)}, section=name)]
    return Table("names", name, name, columns, remark=name, lines=lines)


def index_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    return lambda _: lambda: page.index(view_of(name), ["grid", f"sweep_{name}"])


def gallery_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    def make(folder: Path) -> Callable[[], Any]:
        Image.new("RGB", (2, 2)).save(folder / f"sweep_{name}.png")
        return lambda: page.gallery(folder, [f"sweep_{name}"])

    return make


def names_are_words(name: str) -> Callable[[Path, str], None]:
    return lambda _, text: shows(text, name)


def links_lead(name: str) -> Callable[[Path, str], None]:
    """Every link within the page has its target, and the picture's address is the file's name."""

    def check(_: Path, text: str) -> None:
        from urllib.parse import unquote

        seen = Read(text)
        places = {value for key, value in seen.attributes if key == "id"}
        assert {unquote(value[1:]) for key, value in seen.attributes if key == "href"} <= places
        assert f"sweep_{name}.png" in {unquote(value) for key, value in seen.attributes if key == "src"}

    return check


HOSTILE = ["<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "<b>bold", "a & b", "'onmouseover='alert(1)"]
INDEX = "the index page"
PAGES = [Case(INDEX, f"a row named {name}", index_of(name), None, names_are_words(name)) for name in HOSTILE]
PAGES += [Case(INDEX, f"a link to {name}", index_of(name), None, links_lead(name)) for name in ("a b", "50%", '"quoted"', "a#b?c")]
GALLERY = "the picture page"
PAGES += [Case(GALLERY, f"a row named {name}", gallery_of(name), None, names_are_words(name)) for name in HOSTILE[:4]]


def html_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    return lambda _: lambda: render.page(name, render.html_fragment(table_of(name)))


TABLES = [Case("a table as HTML", name, html_of(name), None, names_are_words(name)) for name in (*HOSTILE, "</script><script>alert(1)")]


# ------------------------------------------------------------------------------------------------- Markdown, LaTeX, CSV


def markdown_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    return lambda _: lambda: render.to_markdown(table_of(name))


def unlike(*forbidden: str) -> Callable[[Path, str], None]:
    """None of these stands in the text with fewer than one backslash before it, and every row of the table has two cells."""

    def check(_: Path, text: str) -> None:
        import re

        for one in forbidden:
            assert not re.search(rf"(?<!\\)(\\\\)*{re.escape(one)}", text), text
        for line in (line for line in text.splitlines() if line.startswith("|")):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, line

    return check


MARKDOWN = [
    Case("a table as Markdown", what, markdown_of(name), None, unlike(*forbidden))
    for what, name, forbidden in (
        ("an image from elsewhere", "![x](http:elsewhere)", ["![", "]("]),
        ("a link that runs", "[x](javascript:alert)", ["]("]),
        ("a link by reference", "[x][y]", ["]["]),
        ("a definition of a link", "[x]: http:elsewhere", ["]:"]),
        ("HTML", "<script>alert(1)", ["<script"]),
        ("an entity", "&lt;script&gt;", ["&lt;s"]),
        ("a cell's end", "a|b", []),
        ("a cell's end behind a backslash", "a\\|b", []),
        ("a line's end", "a\nb\r\n\r\n# c", ["\n# c", "\r"]),
    )
]


def latex_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    return lambda _: lambda: render.to_latex(table_of(name)).replace(r"\textbackslash{}", "BACKSLASH")


LATEX = [
    Case("a table as LaTeX", name, latex_of(name), None, unlike_in_tex)
    for name, unlike_in_tex in (
        (r"\input{/etc/passwd}", lambda _, text: None if r"\input" not in text and "BACKSLASHinput" in text else 1 / 0),
        ("a & b % c", lambda _, text: None if r"a \& b \% c" in text and " & b" not in text.replace(r"\&", "") else 1 / 0),
        ("^^5cinput", lambda _, text: None if "^^" not in text else 1 / 0),
        ("a\n\nb", lambda _, text: None if "a\n" not in text else 1 / 0),
    )
]


def csv_of(name: str) -> Callable[[Path], Callable[[], Any]]:
    return lambda _: lambda: render.to_csv(table_of(name))


def comes_back(name: str) -> Callable[[Path, str], None]:
    def check(_: Path, text: str) -> None:
        head, line = csv.reader(io.StringIO(text))
        assert head == ["section", "row", "value", "remarks"] and line == [name, name, name, f"row: {name}"]

    return check


CSV = [Case("a table as CSV", repr(name), csv_of(name), None, comes_back(name)) for name in ("a,b", 'a"b', "a\nb", "a;b")]


# ------------------------------------------------------------------------------------------------- the report's front page


@functools.cache
def small_world() -> View:
    folder = Path(tempfile.mkdtemp(prefix="apex-cases-"))
    synthetic.build(folder, {("real", 0): 0.9, ("apex", 1): 0.6})
    return View.load(folder, Expected.of(load(ROOT / "workflows/config/smoke.yaml")))


def recorded(**changes: str) -> View:
    """A view whose records say that of themselves."""
    folder = Path(tempfile.mkdtemp(prefix="apex-cases-"))
    for row, quality in (("real", 0.9), ("apex", 0.6)):
        one = synthetic.record(row, int(row == "apex"), 0, "geneval", quality) | changes
        synthetic.write(folder / "records" / row / f"nfe{int(row == 'apex')}/seed0/test/geneval.json", one)
    return View.load(folder)


def front_with(words: str, where: str) -> Callable[[Path], Callable[[], Any]]:
    def make(_: Path) -> Callable[[], Any]:
        if where == "description":
            return lambda: claims.front([], small_world(), words)
        return lambda: claims.front([], recorded(**{where: words}), "Small.")

    return make


def is_said(words: str) -> Callable[[Path, str], None]:
    """Through Jinja and docutils, as Snakemake does it, the words come out as they are, and nothing of them acts."""

    def check(_: Path, text: str) -> None:
        rendered = jinja2.Template(text).render(snakemake=None)
        settings = {"report_level": 5, "halt_level": 6, "warning_stream": None, "file_insertion_enabled": True, "raw_enabled": True}
        tree = publish_doctree(rendered, settings_overrides=settings)
        acting = (nodes.raw, nodes.system_message, nodes.problematic, nodes.image, nodes.literal_block, nodes.substitution_definition)
        assert not list(tree.findall(lambda node: isinstance(node, acting)))
        assert {node["refuri"] for node in tree.findall(nodes.reference)} == {"https://arxiv.org/abs/2604.12322"}
        assert " ".join(words.split()) in " ".join(tree.astext().split()), tree.astext()

    return check


RST = {
    "an include": "Small.\n\n.. include:: /etc/passwd\n",
    "raw HTML": "Small.\n\n.. raw:: html\n\n   <script>alert(1)</script>\n",
    "a template": "{{ 7 * 7 }} and {% for x in y %} and {# note #}",
    "a template that reaches the system": "{{ ''.__class__.__mro__ }}",
    "a link": "`click <javascript:alert>`_ and link_",
    "markup": "*a* **b** ``c`` |d| [1]_ :raw:`x`",
    "a backslash at its end": "a\\",
    "a heading": "Small\n=====\n\nMore",
}
FRONT = [
    Case("the report's front page", f"{what} in the description", front_with(w, "description"), None, is_said(w)) for what, w in RST.items()
]
FRONT += [
    Case("the report's front page", f"{what} in {where}", front_with(RST[what], where), None, is_said(RST[what]))
    for what, where in (
        ("an include", "hardware"), ("raw HTML", "hardware"), ("a template", "hardware"),
        ("a link", "git_commit"), ("raw HTML", "git_commit"),
    )
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- model cards, plots, labels


@functools.cache
def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """made.json and sampling.json of a committed run."""
    folder = ROOT / "results/reference/matrix/runs/apex/seed0"
    return tuple(json.loads((folder / name).read_text()) for name in ("made.json", "sampling.json"))


def card_with(**changes: Any) -> Callable[[Path], Callable[[], Any]]:
    made, recipe = run()
    return lambda _: lambda: card.text(made | changes, recipe, numbers=[], remarks="")


def two_columns(_: Path, text: str) -> None:
    import re

    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in table), table
    assert "<script" not in text and "![" not in text.replace("!\\[", "") and text.count("\n## ") == 5


CARDS = [
    Case("a model card", f"{what} in {key}", card_with(**{key: words}), None, two_columns)
    for what, key, words in (
        ("a cell's end", "hardware", "A | B"),
        ("HTML", "hardware", "<script>alert(1)</script>"),
        ("an image", "git_commit", "![x](http:elsewhere)"),
        ("a heading", "row", "apex\n\n## More"),
        ("HTML", "citation", "<script>"),
        ("a line's end", "params", {"x": "a\n| b"}),
        ("marks of code", "method", "a``b`\n\n## c"),
    )
]


def plotted(name: str) -> Callable[[Path], Callable[[], Any]]:
    def draw() -> bytes:
        with matplotlib.rc_context(plotting.STYLE):
            figure = Figure(figsize=(3, 2))
            axes = figure.add_subplot()
            axes.set_yticks([0, 1], [name, name])
            axes.plot([1, 10, 100], [0, 1, 0.5], label=name)
            axes.set_xscale("log")
            axes.set_title(name)
            axes.legend()
            return plotting.png(figure)

    return lambda _: draw


PLOTS = [
    Case("a plot", f"a row named {name}", plotted(name), None, lambda _, content: Image.open(io.BytesIO(content)).verify())
    for name in (r"$\frac{", "$5 to $10", r"$\input{x}$", "$$")
]


def committed(folder: Path) -> View:
    results = synthetic.build(folder / "results" / "reference" / "tiny", {("real", 0): 0.9, ("apex", 1): 0.6}, tuning=True)
    return View.load(results)


SAID = "Records of the committed reference, not of a run in this folder: "


def labelled(show: Callable[[View], str]) -> Callable[[Path], Callable[[], Any]]:
    def make(folder: Path) -> Callable[[], Any]:
        view = committed(folder)
        return lambda: show(view)

    return make


def says_so(_: Path, text: str) -> None:
    assert SAID in text and "results/reference/tiny" in text


def tuning_says_so(_: Path, text: str) -> None:
    assert "results/reference/tiny/tune/tuning.json. Settings tried for each method" in text


def own_are_not_labelled(_: Path, text: str) -> None:
    assert "committed reference" not in text


def tables_of(view: View) -> str:
    from paper_tables import build, published

    every = build.tables(view, published.load())
    assert all(SAID in table.words for table in every if table.remark)
    return every[0].words


LABELS = [
    Case("committed records", "the index page says so", labelled(lambda view: page.index(view, [])), None, says_so),
    Case("committed records", "the candidates of tuning say so", labelled(lambda view: page.index(view, [])), None, tuning_says_so),
    Case("committed records", "every table says so", labelled(tables_of), None, says_so),
    Case("committed records", "own ones do not", lambda _: lambda: page.index(view_of("mine"), []), None, own_are_not_labelled),
]

CASES = [*PAGES, *TABLES, *MARKDOWN, *LATEX, *CSV, *FRONT, *CARDS, *PLOTS, *LABELS]
