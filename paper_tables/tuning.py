"""What `snakemake tune` tried, as a table and a figure: every candidate of every method, and the chosen ones.

    python -m paper_tables.tuning --results results/world/tune --out results/world/tune

Reads tuning.json; writes tuning.md, .tex, .csv, .html and .png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import read_object, write_atomic
from evaluators.result import first_fault
from paper_tables import plotting
from paper_tables.cells import FAILED, missing, number, plain
from paper_tables.evidence import Correction, correction
from paper_tables.expected import described
from paper_tables.plotting import Look
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.stats import Summary
from paper_tables.view import family_name, family_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Candidate(BaseModel):
    """One setting of a method and how it did on the validation prompts."""

    model_config = ConfigDict(extra="ignore", strict=True)

    params: dict[str, Any] = {}
    train: dict[str, Any] = {}
    geneval: float | None = Field(ge=0, le=1)
    geneval_low: float | None = Field(None, ge=0, le=1)
    geneval_high: float | None = Field(None, ge=0, le=1)
    spread: float | None = Field(None, ge=0, le=1)
    recall: float | None = Field(None, ge=0, le=1)
    forward_equivalents: float | None = Field(None, gt=0)
    wall_seconds: float | None = Field(None, gt=0)
    stopped: str | None = ""
    failed: str | None = ""
    resolved: dict[str, Any] = {}  # the method's settings with its defaults, as the run recorded them
    revision: int | None = Field(None, ge=1)

    def correction(self, method: str) -> Correction | None:
        """The correction of the method's objective that the candidate is older than."""
        return correction(method, {"params": self.params | self.resolved, "revision": self.revision})

    @property
    def words(self) -> str:
        """What differs from the method's defaults."""
        changes = [
            f"{key} {json.dumps(value) if not isinstance(value, str) else value}" for key, value in (self.params | self.train).items()
        ]
        return ", ".join(changes) or "the defaults"


class Tried(BaseModel):
    """The candidates of a method; `chosen` is the place of the best."""

    model_config = ConfigDict(extra="ignore", strict=True)

    candidates: list[Candidate] = Field(min_length=1)
    chosen: int = Field(ge=0)
    declared: int | None = None


class Tuning(BaseModel):
    """tuning.json."""

    model_config = ConfigDict(extra="ignore", strict=True)

    split: str = "val"
    nfe: int = 1
    budget: float
    methods: dict[str, Tried]

    @property
    def spent(self) -> str:
        """What the candidates' trainings cost, by their records and less those that diverged; the declared budget where none says it."""
        every = [one for tried in self.methods.values() for one in tried.candidates]
        known = sorted({one.forward_equivalents for one in every if one.forward_equivalents and not one.stopped}) or [self.budget]
        return f"{known[0]:,.0f}" + (f" to {known[-1]:,.0f}" if known[-1] != known[0] else "")

    @property
    def remarked(self) -> dict[str, list[str]]:
        """Short remark -> the methods with a candidate that carries it."""
        found: dict[str, list[str]] = {}
        for name, tried in self.methods.items():
            for remark in dict.fromkeys(one.remark for c in tried.candidates if (one := c.correction(name))):
                found.setdefault(remark, []).append(name)
        return found


def read(path: Path) -> Tuning:
    """Reads and checks tuning.json; what does not fit is one `UserError` that names the file and the key."""
    if not path.is_file():
        raise UserError(f"{path}: not found; `snakemake tune` makes it")
    try:
        found = Tuning.model_validate(read_object(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; tune again") from None
    for name, tried in found.methods.items():
        if tried.chosen >= len(tried.candidates):
            raise UserError(
                f"{path}: methods.{name}.chosen: found {tried.chosen}, expected a number below {len(tried.candidates)}; tune again"
            )
    return found


@dataclass(frozen=True)
class _Group:
    family: str
    methods: list[str]


def _groups(tuning: Tuning, files: Sequence[str] = ()) -> list[_Group]:
    """The methods by family, as their files state it."""
    families = {name: family_name(described(name, files).get("family", "other")) for name in tuning.methods}
    order = sorted(set(families.values()), key=family_rank)
    return [_Group(family, sorted(name for name, its in families.items() if its == family)) for family in order]


def table(tuning: Tuning) -> Table:
    """A line per candidate, the chosen in bold."""
    columns = [Column("method", "method", numeric=False), Column("candidate", "candidate"), Column("settings", "settings", numeric=False)]
    columns += [
        Column("geneval", "GenEval ↑", tuning.split),
        Column("spread", "spread ↑", tuning.split),
        Column("recall", "recall ↑", tuning.split),
    ]
    columns += [Column("seconds", "seconds"), Column("note", "note", numeric=False)]
    least, most = (f(len(tried.candidates) for tried in tuning.methods.values()) for f in (min, max))
    count = f"{least}" if least == most else f"{least} to {most}"
    caption = (
        f"Settings tried for each method, on the {tuning.split} prompts at NFE {tuning.nfe}, one seed, "
        f"{tuning.spent} forward-equivalents each; {count} candidates a method, declared before they were run, the first "
        "the method's defaults. Bold: the chosen, the highest GenEval. Intervals: 95% over prompts; training noise is not in them, so "
        "neighbours may swap with another seed. A run that diverged counts with what its last good state scores."
    )
    caption += "".join(f" {remark[0].upper()}{remark[1:]}: {', '.join(names)}." for remark, names in tuning.remarked.items())
    found = Table("tuning", "Tuning: every candidate of every method", caption, columns)
    for group in _groups(tuning):
        first = True
        for name in group.methods:
            tried = tuning.methods[name]
            for place, one in enumerate(tried.candidates):
                chosen = place == tried.chosen
                old = one.correction(name)
                why = f"{FAILED}{name}, candidate {place + 1}: {one.failed}." if one.failed else "The candidate's record does not hold it."
                geneval = missing(why) if one.geneval is None else number(Summary(one.geneval, one.geneval_low, one.geneval_high), 3)
                line = {
                    "method": Cell(name, strong=chosen),
                    "candidate": Cell(str(place + 1), Summary(place + 1)),
                    "settings": Cell(one.words, None, old.sentence if old else "", strong=chosen),
                    "geneval": replace(geneval, strong=chosen),
                    "spread": plain(one.spread, why, 2),
                    "recall": plain(one.recall, why, 2),
                    "seconds": plain(one.wall_seconds, why, 0),
                    "note": Cell("; ".join(filter(None, ["chosen" if chosen else "", "diverged" if one.stopped else ""])), None,
                                 f"{name}, candidate {place + 1}: {one.stopped}." if one.stopped else ""),
                }  # fmt: skip
                found.lines.append(Line(line, group.family if first else ""))
                first = False
    return found


def draw(tuning: Tuning) -> Figure:
    """A line per method with a dot per candidate at its GenEval, the chosen filled, numbered as declared; a cross where it diverged."""
    groups = _groups(tuning)
    count = len(tuning.methods) + len(groups)
    height = 0.9 + max(2.4, 0.3 * count)
    figure = plotting.blank((9.2, height))
    axes = figure.add_axes((0.18, 0.55 / height, 0.8, 1 - 1.0 / height))
    look = plotting.looks({name: group.family for group in groups for name in group.methods})
    level, ticks = 0.0, []
    for group in groups:
        axes.annotate(group.family, (0, level), xycoords=("axes fraction", "data"), xytext=(-108, 0), textcoords="offset points",
                      va="center", fontsize=8.5, color=plotting.PALE, style="italic", annotation_clip=False)  # fmt: skip
        level -= 1
        for name in group.methods:
            _dots(axes, level, tuning.methods[name], look[name])
            ticks.append((level, name, look[name].color))
            level -= 1
    axes.set_yticks([place for place, *_ in ticks], [name for _, name, _ in ticks])
    for text, (*_, tint) in zip(axes.get_yticklabels(), ticks, strict=True):
        text.set_color(plotting.ink(tint))
    axes.set(ylim=(level + 0.4, 0.5), xlim=(-0.02, 1.02), xlabel=f"GenEval, {tuning.split} prompts, NFE {tuning.nfe}, 95% over prompts")
    axes.set_title(f"Tuning at {tuning.spent} forward-equivalents: every candidate by its number, the chosen filled, × diverged")
    for remark, names in tuning.remarked.items():
        plotting.footer(figure, names, remark)
    return figure


NEAR = 0.02  # of GenEval: nearer candidates share one text with their numbers


def _dots(axes: Axes, level: float, tried: Tried, look: Look) -> None:
    """The candidates of one method; the chosen is drawn last."""
    scored = [place for place, one in enumerate(tried.candidates) if one.geneval is not None]
    values = sorted(scored, key=lambda place: tried.candidates[place].geneval)
    clusters: list[list[int]] = []
    for place in values:
        near = clusters and tried.candidates[place].geneval - tried.candidates[clusters[-1][-1]].geneval < NEAR
        clusters[-1].append(place) if near else clusters.append([place])
    for place in sorted(values, key=lambda place: place == tried.chosen):
        one, chosen = tried.candidates[place], place == tried.chosen
        if one.geneval_low is not None:
            axes.plot([one.geneval_low, one.geneval_high], [level] * 2, color=look.color, linewidth=1.2, alpha=0.4, zorder=1)
        mark = {"markerfacecolor": look.color if chosen else "white", "markeredgecolor": look.color, "markeredgewidth": 1.2}
        axes.plot([one.geneval], [level], marker="X" if one.stopped else "o", markersize=7, linestyle="", zorder=3 + chosen, **mark)
    for cluster in clusters:
        middle = sum(tried.candidates[place].geneval for place in cluster) / len(cluster)
        text = ", ".join(str(place + 1) for place in cluster)
        axes.annotate(text, (middle, level), xytext=(0, 9), textcoords="offset points", ha="center", va="center", fontsize=7,
                      color=plotting.ink(look.color), zorder=5)  # fmt: skip


def main() -> None:
    parser = Parser("paper_tables.tuning", __doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds tuning.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the figure")
    args = parser.parse_args()
    tuning = read(args.results / "tuning.json")
    for name, content in all_formats(table(tuning)).items():
        write_atomic(args.out / name, content)
    with plotting.drawing():
        write_atomic(args.out / "tuning.png", plotting.png(draw(tuning)))
    print(f"{args.out}: tuning of {len(tuning.methods)} methods as md, tex, csv, html, png")


if __name__ == "__main__":
    sys.exit(run_command(main))
