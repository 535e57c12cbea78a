"""Checks of what the paper's text says against its own tables; the sayings are data, `text_claims.yaml`."""

from __future__ import annotations

import itertools
from typing import Any

from apex.errors import UserError
from paper_tables.checks import Checked
from paper_tables.published import Published, Row, find, half_unit, label

Claim = dict[str, Any]


def _title(table: str) -> str:
    return f"Table {table.removeprefix('table')}"


def _one(data: Published, table: str, where: dict[str, Any], claim: Claim) -> Row | None:
    rows = find(data[table], where)
    if len(rows) > 1:
        raise UserError(f"text_claims.yaml: {claim['id']}: {where} names {len(rows)} rows of {table}.csv, expected one; give more keys")
    return rows[0] if rows else None


def _says(claim: Claim) -> str:
    return f"{'“' if claim['verbatim'] else ''}{claim['says']}{'”' if claim['verbatim'] else ''} ({claim['location']})"


def ratio_in_table(data: Published, claim: Claim, out: Checked) -> None:
    """Is the stated ratio the ratio of any two cells? And is the row that it needs in the table at all?"""
    value, slack = claim["value"], 0.5 * 10.0 ** -claim["decimals"]
    rows, hits = data[claim["table"]], []
    for column in claim["columns"]:
        for a, b in itertools.permutations(rows, 2):
            low = (float(a[column]) - half_unit(a[column])) / (float(b[column]) + half_unit(b[column]))
            high = (float(a[column]) + half_unit(a[column])) / (float(b[column]) - half_unit(b[column]))
            if low <= value + slack and high >= value - slack:
                hits.append(f"{column}: {label(a)}/{label(b)}")
    teacher = [row for row in rows if label(row) == claim["teacher"]["model"]]
    student = _one(data, claim["table"], claim["student"], claim)
    if teacher or student is None:
        return
    seconds, steps = float(student["latency_s"]), claim["teacher"]["steps"]
    two = find(rows, {**claim["student"], "nfe": "2"})
    extra = f"; the table's own extra step ({float(two[0]['latency_s']) - seconds:.2f} s) gives {(seconds + (steps - 1) * (float(two[0]['latency_s']) - seconds)) / seconds:.1f}x for {steps} evaluations, {(seconds + (2 * steps - 1) * (float(two[0]['latency_s']) - seconds)) / seconds:.1f}x for {2 * steps} (with guidance)" if two else ""
    out.add("certain", _title(claim["table"]), f"{claim['teacher']['model']} at {steps} steps", ", ".join(claim["columns"]), f"{_says(claim)}: the table has no row for the {steps}-step teacher, so the ratio cannot be derived from it.", f"{value}x of {label(student)}'s {student['latency_s']} s would be {value * seconds:.2f} s{extra}; {len(hits)} pairs of rows happen to have this ratio")


def better_in_columns(data: Published, claim: Claim, out: Checked) -> None:
    """Does the subject's row beat the object's in every named column?"""
    subject, other = (_one(data, claim["table"], claim[key], claim) for key in ("subject", "object"))
    if subject is None or other is None:
        return
    lost = [key for key, sense in claim["columns"].items() if (float(subject[key]) - float(other[key])) * (1 if sense == "higher" else -1) <= 0]
    if lost:
        out.add("certain", _title(claim["table"]), f"{label(subject)} against {label(other)}", ", ".join(lost), f"{_says(claim)}: not in {len(lost)} of {len(claim['columns'])} columns.", "; ".join(f"{key} {subject[key]} against {other[key]}" for key in lost))


def better_in_tables(data: Published, claim: Claim, out: Checked) -> None:
    """Does any of the subject's rows beat the object on each benchmark?"""
    key = claim["column"]
    for table, name in claim["tables"].items():
        other = _one(data, table, claim["object"], claim)
        rows = [row for row in find(data[table], claim["subject"]) if row[key]]
        if other is None or not rows or not other[key]:
            continue
        best = max(rows, key=lambda row: float(row[key]))
        below = [row for row in rows if float(row[key]) < float(other[key])]
        if below:
            extent = "every row lies" if len(below) == len(rows) else f"{len(below)} of {len(rows)} rows lie"
            out.add("certain", _title(table), ", ".join(label(row) for row in below), key, f"{_says(claim)}: on {name} {extent} below {label(other)}.", f"{', '.join(row[key] for row in below)} against {other[key]}; best {best[key]}")


def ratio_at_least(data: Published, claim: Claim, out: Checked) -> None:
    above, below = (_one(data, claim["table"], claim[key], claim) for key in ("numerator", "denominator"))
    if above is None or below is None:
        return
    key = claim["column"]
    most = (float(above[key]) + half_unit(above[key])) / (float(below[key]) - half_unit(below[key]))
    if most < claim["value"]:
        out.add("certain", _title(claim["table"]), f"{label(above)} against {label(below)}, NFE {above['nfe']}", key, f"{_says(claim)}: the table does not show it.", f"{above[key]} against {below[key]}: {float(above[key]) / float(below[key]):.3f}, at most {most:.3f} with rounding; {claim['value']} was said")


def maximum_is(data: Published, claim: Claim, out: Checked) -> None:
    rows = find(data[claim["table"]], claim["where"])
    above = [row for row in rows if float(row[claim["column"]]) > claim["value"] + 1e-9]
    if above:
        out.add("certain", _title(claim["table"]), ", ".join(label(row) for row in above), claim["column"], f"{_says(claim)}: {len(above)} of the table's own {len(rows)} such rows are above it.", ", ".join(f"{label(row)} {row[claim['column']]}" for row in above))


def not_dominated(data: Published, claim: Claim, out: Checked) -> None:
    """The blamed setting should not beat the praised one everywhere."""
    praised, blamed = (_one(data, claim["table"], claim[key], claim) for key in ("praised", "blamed"))
    if praised is None or blamed is None:
        return
    wins = [key for key in claim["columns"] if float(blamed[key]) > float(praised[key])]
    if wins:
        sure = "certain" if len(wins) == len(claim["columns"]) else "note"
        out.add(sure, _title(claim["table"]), f"{label(blamed)} against {label(praised)}", ", ".join(wins), f"{_says(claim)}: the blamed setting is ahead in {len(wins)} of {len(claim['columns'])} columns.", "; ".join(f"{key} {blamed[key]} against {praised[key]}" for key in wins))


def same_setting(data: Published, claim: Claim, out: Checked) -> None:
    """One setting that two tables report."""
    row = _one(data, claim["table"], claim["row"], claim)
    for pair in claim["pairs"]:
        other = _one(data, claim["other"], pair["where"], claim)
        if row is not None and other is not None and abs(float(row[pair["column"]]) - float(other["geneval"])) > 1e-9:
            out.add("certain", f"{_title(claim['table'])} / {_title(claim['other'])}", label(other), pair["column"], f"{_says(claim)}: the two tables give different values for that setting.", f"{_title(claim['table'])} {row[pair['column']]}, {_title(claim['other'])} {other['geneval']} ({', '.join(pair['where'].values())})")


def headline_in_ablation(data: Published, claim: Claim, out: Checked) -> None:
    """A headline that no cell of the ablation reaches: at the stated steps, and at any."""
    for name in dict.fromkeys(row["model"] for row in data[claim["other"]]):
        headline = _one(data, claim["table"], {"method": name, "nfe": claim["nfe"]}, claim)
        cells = find(data[claim["other"]], {"model": name})
        if headline is None or not cells:
            continue
        best = max(float(row["geneval"]) for row in cells)
        stated = [float(row["geneval"]) for row in cells if row["steps"] == claim["steps"]] if name in claim["models"] else []
        top = float(headline["geneval"])
        if best < top:
            at = f"; {max(stated):.2f} at the stated {claim['steps']} steps" if stated else ""
            out.add("certain", f"{_title(claim['table'])} / {_title(claim['other'])}", name, "geneval", f"The headline lies above every cell of the ablation for this model, so the headline's setting is none of them{' (' + claim['says'] + ')' if stated else ''}.", f"headline {top:.2f}, best cell {best:.2f} of {len(cells)}{at}")


def grid(data: Published, claim: Claim, out: Checked) -> None:
    """The grid of shifts: where the code's own setting stands, and whether the control is there."""
    rows = data[claim["table"]]
    code, control = (_one(data, claim["table"], claim[key], claim) for key in ("code", "control"))
    best = max(rows, key=lambda row: float(row["geneval"]))
    if code is not None and float(code["geneval"]) < float(best["geneval"]):
        above = sum(float(row["geneval"]) > float(code["geneval"]) for row in rows)
        out.add("certain", _title(claim["table"]), f"a={code['a']}, b={code['b']}", "geneval", "The published code's own setting is not the table's best cell.", f"{code['geneval']}, place {above + 1} of {len(rows)}; best {best['geneval']} at a={best['a']}, b={best['b']}")
    if control is None:
        where = ", ".join(f"{key}={value}" for key, value in claim["control"].items())
        out.add("certain", _title(claim["table"]), where, "geneval", "The control without a shift is not in the grid.", f"{len(rows)} cells, none at {where}")
    if not any(key in rows[0] for key in ("model", "dataset", "steps")):
        out.add("certain", _title(claim["table"]), "all", "model, data, steps", "The table names no model, data or budget, so it cannot be set against another table.", f"columns {', '.join(key for key in rows[0] if key not in ('citation', 'source'))}")


KINDS = {function.__name__: function for function in (ratio_in_table, better_in_columns, better_in_tables, ratio_at_least, maximum_is, not_dominated, same_setting, headline_in_ablation, grid)}


def text(data: Published) -> Checked:
    """Every saying of `text_claims.yaml` against the cells that it speaks of."""
    out = Checked("text against tables", "Sayings of the text (text_claims.yaml) against the cells that they speak of", examined=len(data.claims))
    for claim in data.claims:
        if claim["check"] not in KINDS:
            raise UserError(f"text_claims.yaml: {claim['id']}: check {claim['check']!r} is unknown; expected one of {', '.join(KINDS)}")
        KINDS[claim["check"]](data, claim, out)
    return out


CHECKS = (text,)
