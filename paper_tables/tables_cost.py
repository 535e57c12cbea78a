"""What training cost: the budget's share by network, memory by part, time."""

from __future__ import annotations

from dataclasses import replace

from paper_tables import cells
from paper_tables.cells import missing, plain
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.tables_paper import remark
from paper_tables.view import View

CONTROL_ROW = "fm"  # memory is also given as a multiple of this row's: it trains the student and nothing else
OWN = ("student", "teacher", "ema")
PARTS = ("student", "teacher", "extra", "ema", "optimizer", "step")


def shares(view: View, row: str) -> dict[str, float]:
    """The budget's share of the student, the teacher, the running mean and of each network that the method adds; sums to 1."""
    flops = view.networks(row)
    total = sum(flops.values())
    return {name: value / total for name, value in flops.items()} if total else {}


def _row(view: View, row: str) -> dict[str, Cell]:
    line = {"row": Cell(row, None, view.note(row)), "tuning": Cell(cells.tuning_words(view, row))}
    ran = any(view.evaluators(key) for key in view.methods if key[0] == row) or row in view.made
    key = next(key for key in view.methods if key[0] == row)
    why = cells.NO_RECORD if ran else cells.why_missing(view, key, "geneval")
    why = cells.NO_NETWORK if view.images_only(row) else why
    found = shares(view, row)
    extra = {name: share for name, share in found.items() if name not in OWN}
    for name in OWN:
        line[f"share_{name}"] = plain(100 * found.get(name, 0.0) if found else None, why, 1)
    words = f"{row}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in extra.items()) + "." if extra else ""
    cell = plain(100 * sum(extra.values()) if found else None, why, 1)
    line["share_extra"] = Cell(cell.text, cell.summary, cell.note or words)
    for name in (*PARTS, "total"):
        line[f"memory_{name}"] = plain(view.cost(row, "memory_mb", name), why, 1)
    total, control = view.cost(row, "memory_mb", "total"), view.cost(CONTROL_ROW, "memory_mb", "total")
    ratio = total / control if total and control else None
    line["memory_ratio"] = plain(ratio, why if total is None else f"The row {CONTROL_ROW} has no record of its memory.", 2)
    seconds, forwards = view.cost(row, "wall_seconds"), view.cost(row, "forward_equivalents")
    line["forwards"] = plain(forwards, why)
    line["steps"] = plain(view.cost(row, "steps"), why, 0)
    line["seconds"] = plain(seconds, why, 0)
    line["per_thousand"] = plain(1000 * seconds / forwards if seconds and forwards else None, why)
    for name in ("seconds", "per_thousand"):
        if line[name].summary:
            line[name] = replace(line[name], note=view.training_timing(row))
    line["seeds"] = missing(why) if view.images_only(row) else cells.common_cells(view, key)["seeds"]
    hardware = next((made["hardware"] for made in view.made.get(row, []) if made.get("hardware")), "")
    line["hardware"] = (
        Cell(str(hardware)) if hardware else missing(why) if view.images_only(row) else cells.hardware_cell(view, key, "geneval")
    )
    return line | {"note": cells.note_cell(view, row)}


def cost(view: View) -> Table:
    """A line per trained row, by family."""
    columns = [Column("row", "row", numeric=False), Column("tuning", "tuning", numeric=False)]
    columns += [Column(f"share_{name}", name, "share of the budget, %") for name in (*OWN, "extra")]
    columns += [Column(f"memory_{name}", name, "memory in training, MB") for name in (*PARTS, "total")]
    columns += [Column("memory_ratio", f"× {CONTROL_ROW}", "memory in training, MB")]
    columns += [Column("forwards", "forward-equivalents", "run"), Column("steps", "steps", "run"), Column("seconds", "seconds", "run")]
    columns += [Column("per_thousand", "s per 1,000 forward-equivalents", "run"), Column("seeds", "seeds")]
    columns += [Column("hardware", "hardware", numeric=False), Column("note", "note", numeric=False)]
    caption = (
        "What a run costs, means over seeds. Share of the budget: training FLOPs by network; extra: networks that the method adds, "
        "such as a discriminator or a fake-score network (footnotes name them). Memory: parameters of the student, of the frozen "
        "teacher where it is a network of its own, of extra networks, of the running mean; optimizer: AdamW's moments; step: the peak of "
        "activations, gradients and temporaries in one step of training. Seconds are wall time; a footnote says where the machine was busy."
    )
    panels = [
        ("(a) Budget and time", ["row", "tuning", *(f"share_{name}" for name in (*OWN, "extra")),
                                 "forwards", "steps", "seconds", "per_thousand", "seeds", "hardware", "note"]),
        ("(b) Memory", ["row", "tuning", *(f"memory_{name}" for name in (*PARTS, "total", "ratio")), "seeds", "hardware", "note"]),
    ]  # fmt: skip
    table = Table("cost", "Cost of training", caption, columns, remark=remark(view), panels=panels)
    section = ""
    for row in view.rows:
        table.lines.append(Line(_row(view, row), view.families[row] if view.families[row] != section else ""))
        section = view.families[row]
    return table
