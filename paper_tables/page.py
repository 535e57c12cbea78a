"""index.html: headline, figures, tables and the audit on one page, with no script and no outside resource."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from paper_tables import audit, build, published, tuning
from paper_tables.render import Table, html_fragment
from paper_tables.render import page as html_page
from paper_tables.view import TEACHER, View

# Figure -> its title and what to see in it, in the page's order. `sweep_<row>` and `grid_nfe<K>` come beside these.
CAPTIONS = {
    "quality_latency": ("Quality against latency", "Up and left is better."),
    "grid": ("Pictures at one step", "Rows by family, prompts across. Pixels are enlarged, not smoothed."),
    "grid_unseen": ("Unseen combinations", "Prompts that no training image showed."),
    "grid_samples": ("Four samples", "Four images of one prompt: a collapsed generator draws one picture four times."),
    "quality_memory": ("Quality against memory", "What a discriminator or a fake-score network adds lies to the right."),
    "quality_budget": ("Quality against the training budget", "What more training gives."),
    "coverage_quality": ("Coverage", "Spread and recall of a prompt's images against GenEval."),
    "nfe": ("Metrics against NFE", "Dashed: the guided 25-step teacher; dotted: real renders."),
    "nfe_sweep": ("From one step to many", "Whether a row gains from more steps, and where the teacher overtakes it."),
    "training": ("Training", "Losses, gradient norms and diagnostics as logged; rows compare at equal budget."),
    "tuning": ("Tuning", "Every candidate of every method on the validation prompts."),
    "shift_visibility": ("Shift visibility", "Whether the network sees the shifted condition, measured before training."),
    "calibration": ("Calibration of GenEval", "Real renders, spoiled more and more: every curve must fall."),
}
FIRST = ("quality_latency", "grid")


def caption(name: str) -> tuple[str, str]:
    """Title and words of a figure."""
    if name in CAPTIONS:
        return CAPTIONS[name]
    if name.startswith("sweep_"):
        return f"{name.removeprefix('sweep_')}: few steps to many", "One row; prompts across, NFE down."
    return f"Pictures at {name.removeprefix('grid_nfe')} steps", "As above, with more steps."


def ordered(names: Iterable[str]) -> list[str]:
    """The figures in the page's order: pictures at more steps after those at one, the rows' sweeps last of the pictures."""
    known = [name for name in names if not name.startswith(("sweep_", "grid_nfe"))]
    found = sorted(known, key=list(CAPTIONS).index)
    more = sorted((name for name in names if name.startswith("grid_nfe")), key=lambda name: int(name.removeprefix("grid_nfe")))
    at = found.index("grid") + 1 if "grid" in found else len(found)
    return [*found[:at], *more, *found[at:], *sorted(name for name in names if name.startswith("sweep_"))]


MOST_SENTENCES = 6


def headline(view: View) -> str:
    """One sentence per row at NFE 1, the best first: GenEval, its share of the teacher's, spread. Of many rows each family's best."""
    known = {row: score for row in view.rows if (score := view.get((row, 1), "geneval/overall"))}
    rows = sorted(known, key=lambda row: -known[row].value)
    if len(rows) > MOST_SENTENCES:
        best = {view.families[row]: row for row in reversed(rows)}
        rows = [row for row in rows if row in (*best.values(), "apex")]
    out = []
    for row in rows:
        score, share, spread = known[row], view.relative((row, 1), "geneval/overall"), view.get((row, 1), "coverage/spread")
        words = f"<b>{html.escape(row)}</b> at NFE 1: GenEval {score.value:.2f}"
        if share and share.low is not None:
            words += f", {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] of the guided 25-step teacher's"
        out.append(words + (f"; spread {spread.value:.2f}" if spread else "") + ".")
    if len(rows) < len(known):
        out.append(f"These are the best of each family of {len(known)} rows; all of them are below.")
    levels = {
        "guided teacher, 25 steps": TEACHER,
        "teacher, 1 step": ("teacher", 1),
        "real renders": ("real", 0),
        "renders of another prompt": ("shuffled", 0),
    }
    told = [f"{name} {found.value:.2f}" for name, key in levels.items() if (found := view.get(key, "geneval/overall"))]
    return "<br>".join([*out, f"For comparison, GenEval of: {', '.join(told)}."] if told else out)


def _figure(name: str) -> str:
    title, words = map(html.escape, caption(name))
    return (
        f'<h2 id="{name}">{title}</h2><figure><figcaption>{words}</figcaption><img src="{name}.png" alt="{title}" loading="lazy"></figure>'
    )


def index(view: View, figures: list[str], results: Path | None = None) -> str:
    """The whole page; `figures` names the PNG files beside it. With `results`, its tuning is shown where there is any."""
    data = published.load()
    tables = build.tables(view, data)
    profile = ", ".join(map(str, view.all_values("profile"))) or "results"
    body = [f"<h1>Results: {html.escape(profile)}</h1>", f'<p class="box">{headline(view)}</p>', f"<p>{html.escape(tables[0].remark)}</p>"]
    findings = audit.findings_table(audit.run(data))
    by_name = {table.name: table for table in tables}
    if results and (results / "tune" / "tuning.json").is_file():
        by_name["tuned"] = replace(tuning.table(tuning.read(results / "tune" / "tuning.json")), name="tuned")  # the figure is `tuning`
    shown = {name: _figure(name) for name in figures}
    first = [name for name in FIRST if name in shown]
    order: list[str | Table] = [*first, *(by_name.pop(name) for name in ("comparison", "paired", "cost"))]
    order += [name for name in shown if name not in first]
    order += [*by_name.values(), findings]
    links = [(one, caption(one)[0]) if isinstance(one, str) else (one.name, one.title) for one in order]
    body.append("<nav>" + " ".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in links) + "</nav>")
    body += [shown[one] if isinstance(one, str) else html_fragment(one, remark=False) for one in order]
    return html_page(f"Results: {profile}", "\n".join(body))
