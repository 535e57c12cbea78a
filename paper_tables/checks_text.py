"""Checks of what the paper's text says against its own tables: one function per saying of `text_claims.yaml`, named by its id.

A function that does not find the rows it speaks of raises a `UserError`, so that a renamed row cannot pass for agreement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apex.errors import UserError
from paper_tables.checks import Checked
from paper_tables.published import Published, Row, find, half_unit, label


def one(data: Published, table: str, **where: str) -> Row:
    """The one row of `table` that has these values."""
    rows = find(data[table], where)
    if len(rows) != 1:
        raise UserError(
            f"published/{table}.csv: {len(rows)} rows with {where}, expected one; mend the file, or the check in checks_text.py"
        )
    return rows[0]


def speedup(data: Published, says: str, out: Checked) -> None:
    """Is the 50-step teacher's time in the table that the ratio must come from?"""
    stated, steps = 15.33, 50
    if find(data["table1"], {"method": "Qwen-Image"}):
        return
    first, second = (float(one(data, "table1", method="APEX 20B LoRA r=64", nfe=nfe)["latency_s"]) for nfe in ("1", "2"))
    computed = f"{stated} x {first:.2f} s = {stated * first:.2f} s; with the table's own extra step of {second - first:.2f} s, "
    computed += f"{steps} evaluations give {(first + (steps - 1) * (second - first)) / first:.1f}x, "
    computed += f"{2 * steps} (guidance) {(first + (2 * steps - 1) * (second - first)) / first:.1f}x"
    what = f"{says}: Table 1 has no row for the {steps}-step teacher, so the ratio cannot be derived from it."
    out.add("omission", "Table 1", f"Qwen-Image, {steps} steps", what, computed)


def flux_schnell(data: Published, says: str, out: Checked) -> None:
    ours, theirs = (one(data, "table1", method=name, nfe="1") for name in ("APEX 0.6B", "FLUX-schnell"))
    lost = [key for key, sign in (("fid", -1), ("clip", 1), ("geneval", 1)) if sign * (float(ours[key]) - float(theirs[key])) <= 0]
    if lost:
        computed = "; ".join(f"{key} {ours[key]} against {theirs[key]}" for key in lost)
        out.add("contradiction", "Table 1", "APEX 0.6B against FLUX-schnell", f"{says}: not in {len(lost)} of 3 columns.", computed)


def teacher(data: Published, says: str, out: Checked) -> None:
    """Whether what holds on GenEval holds on the other benchmarks."""
    for table, name in (("table3", "DPG"), ("table4", "WISE")):
        theirs = one(data, table, model="Qwen-Image")
        rows = find(data[table], {"prefix": "APEX 20B"})
        below = [row for row in rows if float(row["overall"]) < float(theirs["overall"])]
        if below:
            extent = "every APEX 20B row lies" if len(below) == len(rows) else f"{len(below)} of {len(rows)} APEX 20B rows lie"
            computed = f"{', '.join(row['overall'] for row in below)} against {theirs['overall']}"
            rows_named = ", ".join(label(row) for row in below)
            out.add(
                "note", f"Table {table[-1]}", rows_named, f"{says}: true of GenEval alone; on {name} {extent} below the teacher.", computed
            )


def twice_as_fast(data: Published, says: str, out: Checked) -> None:
    above, below = (one(data, "table1", method=name, nfe="2")["throughput_samples_s"] for name in ("APEX 1.6B", "Sana-Sprint 1.6B"))
    most = (float(above) + half_unit(above)) / (float(below) - half_unit(below))
    if most < 2:
        what = f"{says} (APEX 1.6B, Sana-Sprint 1.6B): the table does not show it."
        computed = f"{above} against {below} images/s: {float(above) / float(below):.3f} x, at most {most:.3f} x with rounding"
        out.add("contradiction", "Table 1", "APEX 1.6B against Sana-Sprint 1.6B, NFE 2", what, computed)


def strongest_two_step(data: Published, says: str, out: Checked) -> None:
    rows = find(data["table1"], {"nfe": "2", "group": "baseline"})
    above = [row for row in rows if float(row["geneval"]) > 0.77]
    if above:
        what = f"{says}: {len(above)} of the table's own {len(rows)} two-step baselines are above it."
        names, computed = (
            ", ".join(parts) for parts in zip(*((label(row), f"{label(row)} {row['geneval']}") for row in above), strict=True)
        )
        out.add("contradiction", "Table 1", names, what, computed)


def loss_weights(data: Published, says: str, out: Checked) -> None:
    praised, blamed = (one(data, "table6", lambda_p="1.0", lambda_e=weight) for weight in ("0.5", "2.0"))
    columns = ("apex_0_6b", "apex_1_6b", "apex_20b_lora_r32")
    wins = [f"{key} {blamed[key]} against {praised[key]}" for key in columns if float(blamed[key]) > float(praised[key])]
    if wins:
        verdict = "contradiction" if len(wins) == len(columns) else "note"
        out.add(verdict, "Table 6", "1:2 against 1:0.5", f"{says}: 1:2 is ahead in {len(wins)} of {len(columns)} columns.", "; ".join(wins))


def default_setting(data: Published, says: str, out: Checked) -> None:
    default = one(data, "table6", lambda_p="1.0", lambda_e="1.0")
    for column, model in (("apex_0_6b", "APEX 0.6B"), ("apex_1_6b", "APEX 1.6B")):
        other = one(data, "table5", model=model, dataset="BLIP-3o", steps="8000")
        if float(default[column]) != float(other["geneval"]):
            what = f"{says}: the two tables give different values for that setting."
            out.add("contradiction", "Tables 5, 6", model, what, f"Table 6 {default[column]}; Table 5 {other['geneval']}")


def headline_steps(data: Published, says: str, out: Checked) -> None:
    for model in dict.fromkeys(row["model"] for row in data["table5"]):
        top = float(one(data, "table1", method=model, nfe="1")["geneval"])
        cells = find(data["table5"], {"model": model})
        best = max(float(row["geneval"]) for row in cells)
        if best < top:
            computed = f"headline {top:.2f}; best of {len(cells)} cells {best:.2f}"
            if "LoRA" in model:
                stated = max(float(row["geneval"]) for row in find(cells, {"steps": "2000"}))
                computed += f", best at the stated 2K steps {stated:.2f}"
            what = "The headline lies above every cell of the ablation, so its data or budget is none of the table's, and it is not stated."
            out.add("omission", "Tables 1, 5", model, f"{says}. {what}" if "LoRA" in model else what, computed)


def shift_grid(data: Published, says: str, out: Checked) -> None:
    rows, code = data["table7"], one(data, "table7", a="-1.0", b="0.0")
    best = max(rows, key=lambda row: float(row["geneval"]))
    above = sum(float(row["geneval"]) > float(code["geneval"]) for row in rows)
    if not {"model", "dataset", "steps"} & set(rows[0]):
        what = "The table names no model, data or budget, so it cannot be set against another table."
        out.add("omission", "Table 7", "all", what, "its columns are a, b, GenEval")
    if above:
        computed = (
            f"{code['geneval']}; {above} of {len(rows)} cells are above it, the best {best['geneval']} at a = {best['a']}, b = {best['b']}"
        )
        out.add("note", "Table 7", "a = -1, b = 0", "The published code's own setting is not the table's best cell.", computed)
    if not find(rows, {"a": "1.0", "b": "0.0"}):
        out.add("omission", "Table 7", "a = 1, b = 0", "The control without a shift is not in the grid.", f"{len(rows)} cells")


SAYINGS: dict[str, Callable[[Published, str, Checked], None]] = {
    function.__name__: function
    for function in (
        speedup,
        flux_schnell,
        teacher,
        twice_as_fast,
        strongest_two_step,
        loss_weights,
        default_setting,
        headline_steps,
        shift_grid,
    )
}


def _check(claim: dict[str, Any]) -> Callable[[Published], Checked]:
    if claim["id"] not in SAYINGS:
        raise UserError(f"text_claims.yaml: id {claim['id']!r} has no check; expected one of {', '.join(SAYINGS)}")
    says = f"“{claim['says']}” ({claim['location']})" if claim["verbatim"] else f"{claim['says']} ({claim['location']})"

    def check(data: Published) -> Checked:
        out = Checked(f"The text: {says}", examined=1)
        SAYINGS[claim["id"]](data, says, out)
        return out

    return check


def checks(data: Published) -> list[Callable[[Published], Checked]]:
    """One check per saying."""
    return [_check(claim) for claim in data.claims]
