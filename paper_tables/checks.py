"""Checks of the paper's tables against themselves: means, weights, rotations, repeats, speed, order.

Each check reads the rows of `Published` and returns a `Checked`: how much it looked at, and its findings. A finding
follows from the cells alone; another cell gives another finding or none. Outside facts: `checks_outside.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paper_tables.published import NUMERIC, Published, Row, half_unit, label

# certain: arithmetic on the printed digits, rounding allowed for, or equality digit by digit.
# likely: needs one outside fact or a statistical judgement. note: worth knowing, may have an innocent reason.
CERTAINTY = ("certain", "likely", "note")

# WISE's weights, https://arxiv.org/abs/2503.07265.
WISE_WEIGHTS = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
SCORES = ("table2", "table3", "table4")


@dataclass(frozen=True)
class Finding:
    """One thing that does not add up: what, where, the computed numbers, how sure."""

    check: str
    certainty: str
    table: str
    row: str
    column: str
    what: str
    computed: str


@dataclass
class Checked:
    """What one check looked at and what it found; `note` says what agreed."""

    name: str
    about: str
    examined: int = 0
    findings: list[Finding] = field(default_factory=list)
    note: str = ""

    def add(self, certainty: str, table: str, row: str, column: str, what: str, computed: str) -> None:
        self.findings.append(Finding(self.name, certainty, table, row, column, what, computed))


def components(table: str) -> list[str]:
    """Columns that the overall column sums up."""
    return [key for key in NUMERIC[table] if key != "overall"]


def complete(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    return [row for row in rows if all(row[key] for key in keys)]


def numbers(row: Row, keys: Sequence[str]) -> np.ndarray:
    return np.array([float(row[key]) for key in keys])


def overall_is_mean(data: Published) -> Checked:
    """Table 2: GenEval's overall is the unweighted mean of its six tasks."""
    out = Checked("overall is the mean", "Table 2: overall against the mean of its six columns, rounding allowed for")
    keys = components("table2")
    for row in complete(data["table2"], NUMERIC["table2"]):
        out.examined += 1
        mean = numbers(row, keys).mean()
        gap = float(row["overall"]) - mean
        bound = half_unit(row["overall"]) + float(np.mean([half_unit(row[key]) for key in keys]))
        if abs(gap) > bound + 1e-9:
            out.add("certain", "Table 2", label(row), "overall", "The overall is not the mean of its six columns.", f"mean {mean:.4f}, printed {row['overall']}, off by {gap:+.4f}, rounding allows {bound:.4f}")
    out.note = f"{out.examined - len(out.findings)} of {out.examined} complete rows agree within rounding"
    return out


def overall_is_weighted(data: Published) -> Checked:
    """Table 4: WISE's overall has fixed weights. Rounding errors are taken as uniform and independent for `likely`."""
    out = Checked("overall has WISE's weights", "Table 4: overall against 0.4 cultural + 0.167 time + 0.133 space + 0.1 each of the rest")
    for row in complete(data["table4"], NUMERIC["table4"]):
        out.examined += 1
        value = sum(weight * float(row[key]) for key, weight in WISE_WEIGHTS.items())
        gap = float(row["overall"]) - value
        slack = sum(weight * half_unit(row[key]) for key, weight in WISE_WEIGHTS.items())
        sigma = math.sqrt(sum((weight * half_unit(row[key])) ** 2 / 3 for key, weight in WISE_WEIGHTS.items()))
        beyond = max(0.0, abs(gap) - half_unit(row["overall"]))
        if beyond > slack + 1e-9 or beyond > 2.5 * sigma:
            sure = "certain" if beyond > slack + 1e-9 else "likely"
            allowed = f"rounding allows {half_unit(row['overall']) + slack:.3f}" + ("" if sure == "certain" else f" at most, this is {beyond / sigma:.1f} of its standard deviations")
            out.add(sure, "Table 4", label(row), "overall", "The overall does not follow from its columns with WISE's weights.", f"computed {value:.4f}, printed {row['overall']}, off by {gap:+.4f}; {allowed}")
    return out


def rotated(data: Published) -> Checked:
    """Table 3: rows whose cells look shifted by one, the overall standing first.

    DPG's overall lies below the mean of its categories (a failed parent question zeroes its children), so an overall above it is
    odd. A published row of the model, where `other.csv` has it, decides. Rows next to a shifted one that share a pattern which
    no other row has (always the same column largest) are suspected with it.
    """
    out = Checked("columns rotated", "Table 3: overall above the mean of its columns; a published row that equals the printed one shifted; neighbours with the same odd pattern")
    keys, rows = components("table3"), complete(data["table3"], NUMERIC["table3"])
    out.examined = len(rows)
    gaps = [float(row["overall"]) - numbers(row, keys).mean() for row in rows]
    usual = sum(gap < 0 for gap in gaps)
    shifted: set[int] = set()
    for i, row in enumerate(rows):
        cells = [row[key] for key in NUMERIC["table3"]]
        known = [item for item in data["other"] if item["comparable_to"] == f"table3:{label(row)}" and item["benchmark"] == "DPG"]
        values = {item["metric"]: item["value"] for item in known}
        turned = cells[1:] + cells[:1]
        match = all(key in values for key in NUMERIC["table3"]) and [values[key] for key in NUMERIC["table3"]] == turned
        first = values.get("overall") == cells[0] != cells[-1]
        if match or first:
            shifted.add(i)
            what = f"equals {known[0]['model']}'s published row digit for digit, shifted by one: its overall is printed first" if match else "prints the model's published overall in its first column"
            out.add("certain", "Table 3", label(row), "all", f"The row {what}.", f"printed {', '.join(cells)}; published overall {values['overall']} ({known[0]['source']})")
        elif gaps[i] > 0 and usual >= 0.8 * len(rows):
            shifted.add(i)
            out.add("likely", "Table 3", label(row), "overall", "The overall lies above the mean of its columns, as in hardly any other row: the cells may be shifted.", f"overall minus mean {gaps[i]:+.2f}; the other rows have {sorted(gaps)[0]:.2f} to {max(gap for gap in gaps if gap < 0):.2f}")
    top = [int(numbers(row, keys).argmax()) for row in rows]
    seen: set[int] = set()
    for i in sorted(shifted):
        for step in (1, -1):
            run = list(itertools.takewhile(lambda j: 0 <= j < len(rows) and j not in shifted, itertools.count(i + step, step)))
            run = list(itertools.takewhile(lambda j: top[j] == top[run[0]], run)) if run else []
            rest = [j for j in range(len(rows)) if j not in shifted and j not in run]
            same = sum(top[j] == top[run[0]] for j in rest) if run else 0
            if len(run) < 2 or same > 0.1 * len(rest) or seen & set(run):
                continue
            seen |= set(run)
            before = keys[top[run[0]] - 1]
            turned_same = sum(keys[top[j]] == before for j in rest)
            for j in run:
                cells = numbers(rows[j], keys)
                margin = cells.max() - np.partition(cells, -2)[-2]
                out.add("likely", "Table 3", label(rows[j]), "all", f"Stands beside a shifted row and has {keys[top[j]]!r} as its largest column; {same} of {len(rest)} other rows do. Shifted by one it is {before!r}, the largest in {turned_same} of {len(rest)}: the overall may be printed first.", f"{keys[top[j]]} leads by {margin:.2f}; overall would be {rows[j][keys[0]]} instead of {rows[j]['overall']}")
    return out


def repeated(data: Published) -> Checked:
    """The same digits in two rows: across tables, or for two models of one table."""
    out = Checked("rows repeated", "Tables 2, 3, 4: the same row of digits under two names or in two tables")
    rows = [(table, row, tuple(row[key] for key in NUMERIC[table])) for table in SCORES for row in complete(data[table], NUMERIC[table])]
    for (table, row, cells), (other, twin, again) in itertools.combinations(rows, 2):
        out.examined += 1
        if cells == again:
            out.add("certain", _title(other), label(twin), "all", f"The row repeats the {_title(table)} row of {label(row)}, digit for digit.", ", ".join(cells))
    return out


def _title(table: str) -> str:
    return f"Table {table.removeprefix('table')}"


def alike(data: Published) -> Checked:
    """Two models whose columns are all but equal, or differ by one constant."""
    out = Checked("rows alike", "Tables 2, 3, 4: two models that agree in all columns but one, or whose columns all differ by the same amount within rounding")
    for table in SCORES:
        keys = components(table)
        pairs = list(itertools.combinations(complete(data[table], NUMERIC[table]), 2))
        out.examined += len(pairs)
        equal = [sum(a[key] == b[key] for key in keys) for a, b in pairs]
        spread = [float(np.ptp(numbers(a, keys) - numbers(b, keys))) for a, b in pairs]
        for (a, b), same, width in zip(pairs, equal, spread, strict=True):
            names = f"{label(a)} / {label(b)}"
            if same == len(keys) - 1:
                others = sum(count >= len(keys) - 1 for count in equal) - 1
                out.add("note", _title(table), names, "all but one", f"The two models agree in {same} of {len(keys)} columns; {others} other of {len(pairs)} pairs do.", "; ".join(f"{key} {a[key]}/{b[key]}" for key in keys))
            elif same == 0 and width <= 4 * half_unit(a[keys[0]]) + 1e-9:
                differences = numbers(b, keys) - numbers(a, keys)
                out.add("note", _title(table), names, "all", "The two models differ by one constant in every column, within rounding; the median pair's differences vary far more.", f"differences {', '.join(f'{value:+.2f}' for value in differences)}; range {width:.2f} against a median of {np.median(spread):.2f} over {len(pairs)} pairs")
    return out


def narrow(data: Published) -> Checked:
    """Table 3: rows whose categories hardly differ, against what every other model shows."""
    out = Checked("columns hardly differ", "Table 3: the range of a row's five categories against the other rows' (robust z of its logarithm)")
    keys, rows = components("table3"), complete(data["table3"], NUMERIC["table3"])
    out.examined = len(rows)
    logs = np.log([float(np.ptp(numbers(row, keys))) + 1e-3 for row in rows])
    middle = np.median(logs)
    scale = 1.4826 * np.median(np.abs(logs - middle))
    for row, value in zip(rows, logs, strict=True):
        z = (value - middle) / scale if scale > 0 else 0.0
        if z < -2.5:
            out.add("note", "Table 3", label(row), "all", "The five categories are all but equal, unlike any other model's.", f"range {math.exp(value):.2f}, median row {math.exp(middle):.2f}, robust z {z:.1f}")
    return out


def same_model_two_tables(data: Published) -> Checked:
    """Table 1's GenEval against Table 2's overall, by name (and NFE where Table 2 gives one)."""
    out = Checked("one setting, two values", "Table 1 GenEval against Table 2 overall, same model and NFE")
    for row in data["table2"]:
        twins = [other for other in data["table1"] if label(other) == label(row) and (not row["nfe"] or other["nfe"] == row["nfe"])]
        if not twins:
            continue
        out.examined += 1
        if all(abs(float(twin["geneval"]) - float(row["overall"])) > 1e-9 for twin in twins):
            out.add("certain", "Table 1 / Table 2", label(row), "geneval / overall", "The two tables give different values for one model at one NFE.", f"Table 1 {', '.join(twin['geneval'] for twin in twins)}; Table 2 {row['overall']}")
    out.note = f"{out.examined - len(out.findings)} of {out.examined} shared rows agree"
    return out


def more_steps(data: Published) -> Checked:
    """Table 1: two steps that score below one."""
    out = Checked("two steps below one", "Table 1: rows whose NFE 2 scores below their NFE 1 (FID lower is better)")
    by_name = {(label(row), row["nfe"]): row for row in data["table1"]}
    for (name, nfe), one in by_name.items():
        if nfe != "1" or (name, "2") not in by_name:
            continue
        out.examined += 1
        two = by_name[name, "2"]
        worse = [key for key, sign in (("fid", -1), ("clip", 1), ("geneval", 1)) if sign * (float(two[key]) - float(one[key])) < 0]
        if worse:
            out.add("note", "Table 1", name, ", ".join(worse), "Two steps score below one step.", "; ".join(f"{key}: {one[key]} at NFE 1, {two[key]} at NFE 2" for key in worse))
    return out


def batching(data: Published) -> Checked:
    """Table 1: throughput at batch 10 can hardly lie below one over the latency at batch 1; a larger sibling is hardly faster."""
    out = Checked("throughput and latency", "Table 1: throughput x latency below 1; a larger model of one family with a smaller latency")
    family = re.compile(r"\s[\d.]+B$")
    for row in data["table1"]:
        out.examined += 1
        product = float(row["throughput_samples_s"]) * float(row["latency_s"])
        high = (float(row["throughput_samples_s"]) + half_unit(row["throughput_samples_s"])) * (float(row["latency_s"]) + half_unit(row["latency_s"]))
        if high < 1:
            out.add("likely", "Table 1", f"{label(row)}, NFE {row['nfe']}", "throughput, latency", "A batch of ten takes longer per image than one image alone.", f"throughput x latency = {product:.2f}")
        for twin in data["table1"]:
            if family.search(label(row)) and family.sub("", label(twin)) == family.sub("", label(row)) and twin["nfe"] == row["nfe"] and family.search(label(twin)):
                larger = float(twin["params_b"]) > float(row["params_b"])
                if larger and float(twin["latency_s"]) < float(row["latency_s"]):
                    out.add("note", "Table 1", f"{label(twin)}, NFE {row['nfe']}", "latency_s", f"The larger model is faster than {label(row)}.", f"{twin['params_b']}B: {twin['latency_s']} s; {row['params_b']}B: {row['latency_s']} s")
    return out


def training_curves(data: Published) -> Checked:
    """Table 5: cells against the table's own trends, over data sets and over steps."""
    out = Checked("trends of Table 5", "Table 5: a data set's lead that turns round in one cell; a score that falls with more steps")
    cells = {(row["model"], row["dataset"], int(row["steps"])): float(row["geneval"]) for row in data["table5"]}
    sets = sorted({key[1] for key in cells})
    if len(sets) == 2:
        leads = {(model, steps): cells[model, sets[0], steps] - cells[model, sets[1], steps] for model, _, steps in cells if (model, sets[0], steps) in cells and (model, sets[1], steps) in cells}
        out.examined += len(leads)
        ahead = sum(value > 0 for value in leads.values())
        for (model, steps), value in leads.items():
            agree = ahead if value > 0 else len(leads) - ahead
            if agree < 0.25 * len(leads):
                out.add("note", "Table 5", f"{model}, {steps} steps", "geneval", f"The lead of {sets[0]} over {sets[1]} turns round here and in {agree - 1} other of {len(leads)} settings.", f"{sets[0]} {cells[model, sets[0], steps]:.2f}, {sets[1]} {cells[model, sets[1], steps]:.2f}")
    for model, dataset in sorted({key[:2] for key in cells}):
        curve = sorted((steps, value) for (name, data_set, steps), value in cells.items() if (name, data_set) == (model, dataset))
        out.examined += len(curve) - 1
        for (early, low), (late, high) in itertools.pairwise(curve):
            if high < low:
                out.add("note", "Table 5", f"{model}, {dataset}", "geneval", "The score falls with more steps.", f"{low:.2f} after {early}, {high:.2f} after {late}")
    return out


def blanks(data: Published) -> Checked:
    """Rows that are not complete, so no sum can be checked."""
    out = Checked("cells missing", "Tables 2, 3, 4: rows with an overall and missing columns")
    for table in SCORES:
        for row in data[table]:
            out.examined += 1
            empty = [key for key in components(table) if not row[key]]
            if empty and row["overall"]:
                out.add("note", _title(table), label(row), ", ".join(empty), "The row has an overall but not the columns that it sums up.", f"{len(empty)} of {len(components(table))} columns missing")
    return out


CHECKS = (overall_is_mean, overall_is_weighted, rotated, repeated, alike, narrow, same_model_two_tables, more_steps, batching, training_curves, blanks)
