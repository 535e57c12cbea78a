"""index.html: headline, figures, tables and the audit on one page, with no script and no outside resource."""

from __future__ import annotations

import html

from paper_tables import audit, build, published
from paper_tables.render import html_fragment
from paper_tables.render import page as html_page
from paper_tables.view import TEACHER, View

# Figure -> its title and what to see in it, in the page's order; the tables of this folder come after the grids.
CAPTIONS = {
    "quality_latency": ("Quality against latency", "Up and left is better."),
    "grid": ("Pictures", "Prompts by rows and NFE. Pixels are enlarged, not smoothed."),
    "grid_unseen": ("Unseen combinations", "Prompts that no training image showed."),
    "grid_samples": ("Four samples", "Four images of one prompt: a collapsed generator draws one picture four times."),
    "coverage_quality": ("Coverage", "Spread of a prompt's images against GenEval."),
    "nfe": ("Metrics against NFE", "Dashed: the guided 25-step teacher; dotted: real renders."),
    "training": ("Training", "Losses and diagnostics as logged; rows compare at equal budget."),
    "shift_visibility": ("Shift visibility", "Whether the network sees the shifted condition, measured before training."),
    "calibration": ("Calibration of GenEval", "Real renders, spoiled more and more: every curve must fall."),
}


def headline(view: View) -> str:
    """One sentence per row at NFE 1: its GenEval, its share of the teacher's, its spread."""
    out = []
    for row in dict.fromkeys(name for name, _ in view.methods):
        score, share, spread = (
            view.get((row, 1), "geneval/overall"),
            view.relative((row, 1), "geneval/overall"),
            view.get((row, 1), "coverage/spread"),
        )
        if score:
            words = f"<b>{html.escape(row)}</b> at NFE 1: GenEval {score.value:.2f}"
            if share and share.low is not None:
                words += f", {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] of the guided 25-step teacher's"
            out.append(words + (f"; spread {spread.value:.2f}" if spread else "") + ".")
    levels = {
        "guided teacher, 25 steps": TEACHER,
        "teacher, 1 step": ("teacher", 1),
        "real renders": ("real", 0),
        "renders of another prompt": ("shuffled", 0),
    }
    known = [f"{name} {found.value:.2f}" for name, key in levels.items() if (found := view.get(key, "geneval/overall"))]
    return "<br>".join([*out, f"For comparison, GenEval of: {', '.join(known)}."] if known else out)


def _figure(name: str) -> str:
    title, words = map(html.escape, CAPTIONS[name])
    return (
        f'<h2 id="{name}">{title}</h2><figure><figcaption>{words}</figcaption><img src="{name}.png" alt="{title}" loading="lazy"></figure>'
    )


def index(view: View, figures: list[str]) -> str:
    """The whole page; `figures` names the PNG files beside it."""
    data = published.load()
    tables = build.tables(view, data)
    profile = ", ".join(map(str, view.all_values("profile"))) or "results"
    body = [f"<h1>Results: {html.escape(profile)}</h1>", f'<p class="box">{headline(view)}</p>', f"<p>{html.escape(tables[0].remark)}</p>"]
    findings = audit.findings_table(audit.run(data))
    relative, world, *paper = tables
    shown = {name: _figure(name) for name in figures}
    first = [name for name in shown if name.startswith(("quality", "grid"))]
    order = [*first, relative, world, *(name for name in shown if name not in first), *paper, findings]
    links = [(one, CAPTIONS[one][0]) if isinstance(one, str) else (one.name, one.title) for one in order]
    body.append("<nav>" + " ".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in links) + "</nav>")
    body += [shown[one] if isinstance(one, str) else html_fragment(one, remark=False) for one in order]
    return html_page(f"Results: {profile}", "\n".join(body))
