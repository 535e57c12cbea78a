"""The speed table: systems of the paper's Table 1 as they were timed here, beside the published figures; a table and a figure.

    python -m paper_tables.systems --results results/speed --out results/speed/tables

Reads records of `python -m evaluators.systems`: <system>/<resolution>px/nfe<steps>.json. What has no record says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators.result import Record, read_record
from evaluators.systems.known import system, systems
from paper_tables import plotting, published, stats
from paper_tables.cells import missing, number, plain, significant
from paper_tables.published import Published
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.stats import Summary
from paper_tables.view import load_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {"text": "#7FA6C9", "denoise": "#2F5D8A", "decode": "#D9A441"}
NOT_RUN = "Not run yet; snakemake speed times it."
NOT_PRINTED = "Does not apply: Table 1 has no such row."
TEACHER, STUDENT = ("qwen-image-teacher", 512, 50), ("qwen-image-lora-r64", 512, 1)
Key = tuple[str, int, int]  # system, resolution, steps


@dataclass(frozen=True)
class Timed:
    """All records of a folder, by system, resolution and steps."""

    records: dict[Key, Record]

    @classmethod
    def load(cls, folder: Path) -> Timed:
        """Raises UserError where a record is damaged or is none of a system."""
        found = {}
        for path in sorted(folder.glob("*/*px/nfe*.json")):
            record = read_record(path)
            if record.evaluator != "systems":
                raise UserError(f"{path}: evaluator: found {record.evaluator!r}, expected 'systems'; `snakemake speed` writes this folder")
            found[record.row, int(record.details["resolution"]), record.nfe] = record
        return cls(found)

    def get(self, key: Key, metric: str) -> Summary | None:
        if record := self.records.get(key):
            for one in record.metrics:
                if one.metric == metric:
                    return Summary(one.value, one.ci_low, one.ci_high, one.n, 1, one.interval or "")
        return None

    def full(self, keys: Iterable[Key] | None = None) -> bool:
        """Whether the published sizes were timed, of these or of all."""
        asked = [self.records.get(key) for key in keys] if keys is not None else list(self.records.values())
        return bool(asked) and all(record is not None and record.details["scale"] == "full" for record in asked)

    def speedup(self) -> Summary | None:
        """Seconds of the guided 50-step teacher over those of the LoRA's one step, batch 1; the quartiles' extremes for an interval."""
        theirs, ours = (self.get(key, "speed/latency_b1_s") for key in (TEACHER, STUDENT))
        return stats.times_faster(theirs, ours) if theirs and ours else None


def printed(data: Published, names: Iterable[str], nfe: int, column: str) -> Cell:
    """Table 1's number of the first of its rows that run this network; a footnote says where others differ."""
    rows = [row for name in names for row in data["table1"] if row["method"] == name and row["nfe"] == str(nfe)]
    if not rows:
        return missing(NOT_PRINTED)
    others = {row["method"]: row[column] for row in rows if row[column] != rows[0][column]}
    note = "Printed for the same network: " + ", ".join(f"{name} {value}" for name, value in others.items()) + "." if others else ""
    return Cell(rows[0][column], Summary(float(rows[0][column])), note)


def keys(timed: Timed) -> list[Key]:
    """What is to be timed, in the order of systems.yaml, and what else was."""
    wanted = [(name, side, nfe) for name, what in systems().items() for side in what.resolutions for nfe in what.nfe]
    return [*wanted, *(key for key in timed.records if key not in wanted)]


def table(timed: Timed, data: Published) -> Table:
    """A line per system, resolution and number of steps."""
    machines = sorted({record.hardware for record in timed.records.values()})
    small = [record for record in timed.records.values() if record.details["scale"] != "full"]
    published_on = data.networks["machine"]["name"]
    caption = (
        "Stock diffusers pipelines built from public configurations with random weights: speed does not depend on values. Seconds of a "
        "whole call, prompts to 8-bit images, median and interquartile range; batch 1 and 10. Tokenizers count words. "
        f"Published: Table 1, {published_on}, resolution not said. Here: {'; '.join(machines) or 'nothing timed yet'}."
    )
    if small:
        caption += (
            " These are the same classes built small, in fp32, on images an eighth as wide: their seconds show that everything runs, and "
            "say nothing about the published ones. On a GPU, snakemake speed times the published sizes in bf16."
        )
    if found := timed.speedup():
        caption += (
            f" Guided teacher of 50 steps over one step with LoRA, batch 1, 512 px{' (built small)' if small else ''}: "
            f"{number(found, None).text}; the paper says 15.33."
        )
    columns = [
        Column("system", "system", numeric=False), Column("pixels", "px"), Column("nfe", "steps"), Column("passes", "network evaluations"),
        Column("parameters", "denoiser, billions"),
        Column("published_latency", "latency, s ↓", "published"), Column("published_throughput", "images/s ↑", "published"),
        Column("latency", "latency, s ↓", "here, batch 1"), Column("text", "text, s", "here, batch 1"),
        Column("denoise", "denoise, s", "here, batch 1"), Column("decode", "decode, s", "here, batch 1"),
        Column("throughput", "images/s ↑", "here, batch 10"), Column("memory_b1", "batch 1", "peak memory, GB"),
        Column("memory_b10", "batch 10", "peak memory, GB"), Column("scale", "built", numeric=False),
    ]  # fmt: skip
    out = Table("speed", "Speed of the systems in Table 1", caption, columns)
    for key in keys(timed):
        name, side, nfe = key
        record = timed.records.get(key)
        names = record.details["published"] if record else system(name).published if name in systems() else []
        why = record.details["failed"] if record and record.details["failed"] else NOT_RUN
        about: dict[str, Any] = record.details if record else {}
        line = {
            "system": Cell(name),
            "pixels": Cell(f"{side} ({about['pixels']})" if about.get("pixels", side) != side else str(side), Summary(side)),
            "nfe": Cell(str(nfe), Summary(nfe)),
            "passes": plain(about.get("network_evaluations"), why, 0),
            "parameters": plain(record.parameters / 1e9 if record and record.parameters else None, why),
            "published_latency": printed(data, names, nfe, "latency_s"),
            "published_throughput": printed(data, names, nfe, "throughput_samples_s"),
            "scale": Cell({"full": "published size", "small": "small"}[about["scale"]]) if about else missing(why),
        }
        told = {"latency": "latency_b1_s", "throughput": "throughput_b10_sps"} | {stage: f"stage/{stage}_b1_s" for stage in STAGES}
        for column, metric in told.items():
            found = timed.get(key, f"speed/{metric}")
            line[column] = number(found, None, interval=column in ("latency", "throughput")) if found else missing(why)
        if record and line["latency"].summary:
            line["latency"] = replace(line["latency"], note=load_words(record.details.get("load"), bool(record.details.get("busy"))))
        for batch in (1, 10):
            found = timed.get(key, f"speed/peak_memory_b{batch}_mb")
            line[f"memory_b{batch}"] = plain(found.value / 1024 if found else None, why)
        out.lines.append(Line(line))
    return out


def draw(timed: Timed, data: Published) -> Figure:
    """A panel per resolution, a bar per system at its fewest steps, a part per stage; the published latency where sizes are the same."""
    sides = sorted({side for _, side, _ in timed.records})
    fewest = {(name, side): min(nfe for other, at, nfe in timed.records if (other, at) == (name, side)) for name, side, _ in timed.records}
    names = list(dict.fromkeys(name for name, side, _ in keys(timed) if (name, side) in fewest))  # a line each, the same in both panels
    steps = [min(fewest[name, side] for side in sides if (name, side) in fewest) for name in names]
    height = 0.26 * len(names) + 1.7
    figure = plotting.blank((10.4, height))
    bars = [(name, side, nfe) for (name, side), nfe in fewest.items()]
    limit = sorted(found.value for key in bars if (found := timed.get(key, "speed/latency_b1_s")))
    for at, side in enumerate(sides):
        axes = figure.add_axes((0.215 + 0.395 * at, 0.95 / height, 0.365, 1 - 1.75 / height))
        panel = [(level, (name, side, fewest[name, side])) for level, name in enumerate(names) if (name, side) in fewest]
        for level, key in panel:
            start = 0.0
            for stage, color in STAGES.items():
                if found := timed.get(key, f"speed/stage/{stage}_b1_s"):
                    axes.barh(level, found.value, left=start, color=color, height=0.66)
                    start += found.value
            cell = printed(data, timed.records[key].details["published"], key[2], "latency_s")
            if timed.full() and cell.summary:
                axes.plot(cell.summary.value, level, "D", color=plotting.INK, markersize=4)
            if not start:
                axes.text(0, level, " " + (timed.records[key].details["failed"] or "no number"), va="center", fontsize=7)
            elif start > 1.05 * _edge(limit):
                axes.text(_edge(limit), level, f"{significant(start)} s  ", va="center", ha="right", fontsize=8, color="white")
        labels = [name + (f", {nfe} steps" if nfe != 1 else "") for name, nfe in zip(names, steps, strict=True)]
        axes.set_yticks([] if at else range(len(names)), [] if at else labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, _edge(limit))
        axes.grid(visible=False)
        axes.set_xlabel("seconds a call, batch 1")
        small = timed.records[panel[0][1]].details["pixels"]
        axes.set_title(f"{side} px" + ("" if timed.full() else f", built small on {small} px"))
    machines = "; ".join(sorted({record.hardware for record in timed.records.values()}))
    figure.suptitle(f"Prompt to image, one step unless said: {machines}", x=0.01, ha="left", fontsize=11)
    shown: dict[str, dict[str, Any]] = {stage: {"color": color, "linewidth": 6} for stage, color in STAGES.items()}
    if timed.full():
        shown["published"] = {"color": plotting.INK, "marker": "D", "linestyle": "none"}
    plotting.legend(figure, shown)
    return figure


def _edge(values: list[float]) -> float:
    """The axis' end: a call of many steps runs off it, its seconds in words."""
    return 1.15 * values[max(0, int(0.93 * len(values)) - 1)] if values else 1.0


def main() -> None:
    parser = Parser("paper_tables.systems", __doc__)
    parser.add_argument("--results", required=True, type=Path, help="folder of the records")
    parser.add_argument("--out", required=True, type=Path, help="folder for table and figure")
    args = parser.parse_args()
    timed, data = Timed.load(args.results), published.load()
    if not timed.records:
        raise UserError(f"{args.results}: found no record <system>/<resolution>px/nfe<steps>.json; run `snakemake speed`")
    for name, content in all_formats(table(timed, data)).items():
        write_atomic(args.out / name, content)
    with plotting.drawing():
        write_atomic(args.out / "speed.png", plotting.png(draw(timed, data)))
    print(f"{args.out}: speed.md, speed.html, speed.png")


if __name__ == "__main__":
    sys.exit(run_command(main))
