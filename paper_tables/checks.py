"""Checks of the paper's tables against themselves: means, weights, repeats, shifted cells, order.

Each check reads the rows of `Published` and returns a `Checked`: what it compares, how much it looked at, and its findings. A
finding follows from the cells alone; another cell gives another finding or none. Outside facts: `checks_outside.py`; what
the text says: `checks_text.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paper_tables.published import NUMERIC, Published, Row, find, half_unit, label

VERDICTS = {
    "contradiction": "printed digits contradict each other, the text, or a public fact, rounding allowed for",
    "omission": "a number or a setting that the comparison needs is not there",
    "doubtful": "probable, but it rests on a judgement or on an estimate",
    "note": "worth knowing, may have an innocent reason",
    "adds up": "checked, nothing found",
}
# WISE's weights, https://arxiv.org/abs/2503.07265.
WISE_WEIGHTS = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
SCORES = ("table2", "table3", "table4")


@dataclass(frozen=True)
class Finding:
    """One thing: how it stands, where, what it is, and the computed numbers."""

    verdict: str
    table: str
    row: str
    what: str
    computed: str


@dataclass
class Checked:
    """What one check compares, on how many things, and what it found."""

    about: str
    examined: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, verdict: str, table: str, row: str, what: str, computed: str) -> None:
        self.findings.append(Finding(verdict, table, row, what, computed))


def title(table: str) -> str:
    return f"Table {table.removeprefix('table')}"


def components(table: str) -> list[str]:
    """Columns that the overall column sums up."""
    return [key for key in NUMERIC[table] if key != "overall"]


def complete(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    return [row for row in rows if all(row[key] for key in keys)]


def numbers(row: Row, keys: Sequence[str]) -> np.ndarray:
    return np.array([float(row[key]) for key in keys])


def overall_is_mean(data: Published) -> Checked:
    out = Checked("Table 2: overall is the mean of its six columns, rounding allowed for")
    keys = components("table2")
    for row in complete(data["table2"], NUMERIC["table2"]):
        out.examined += 1
        mean = numbers(row, keys).mean()
        bound = half_unit(row["overall"]) + float(np.mean([half_unit(row[key]) for key in keys]))
        if abs(float(row["overall"]) - mean) > bound + 1e-9:
            computed = f"mean {mean:.4f}, printed {row['overall']}, rounding allows {bound:.4f}"
            out.add("contradiction", "Table 2", label(row), "The overall is not the mean of its six columns.", computed)
    return out


def overall_is_weighted(data: Published) -> Checked:
    """Beyond any rounding: a contradiction. Beyond 2.5 standard deviations of uniform, independent rounding errors: doubtful."""
    out = Checked("Table 4: overall has WISE's weights (0.4 cultural, 0.167 time, 0.133 space, 0.1 each of the rest), rounding allowed for")
    for row in complete(data["table4"], NUMERIC["table4"]):
        out.examined += 1
        value = sum(weight * float(row[key]) for key, weight in WISE_WEIGHTS.items())
        gap = float(row["overall"]) - value
        slack = half_unit(row["overall"]) + sum(weight * half_unit(row[key]) for key, weight in WISE_WEIGHTS.items())
        sigma = math.sqrt(sum((weight * half_unit(row[key])) ** 2 / 3 for key, weight in WISE_WEIGHTS.items()))
        beyond = max(0.0, abs(gap) - half_unit(row["overall"])) / sigma
        certain = abs(gap) > slack + 1e-9
        if certain or beyond > 2.5:
            words = f"rounding allows {slack:.3f}" + ("" if certain else f" at most; {beyond:.1f} standard deviations of it")
            computed = f"computed {value:.3f}, printed {row['overall']}, off by {gap:+.3f}; {words}"
            verdict = "contradiction" if certain else "doubtful"
            out.add(verdict, "Table 4", label(row), "The overall does not follow from its columns with WISE's weights.", computed)
    return out


def repeated(data: Published) -> Checked:
    out = Checked("Tables 2, 3, 4: no row of digits stands under two names or in two tables")
    rows = [(table, row, tuple(row[key] for key in NUMERIC[table])) for table in SCORES for row in complete(data[table], NUMERIC[table])]
    for (table, row, cells), (other, twin, again) in itertools.combinations(rows, 2):
        out.examined += 1
        if cells == again:
            what = f"The row repeats the {title(table)} row of {label(row)}, digit for digit: another benchmark's numbers."
            out.add("contradiction", title(other), label(twin), what, ", ".join(cells))
    return out


def shifted(data: Published) -> Checked:
    """Table 3: rows whose overall is printed first and whose other cells stand one place to the right.

    An overall below its categories is no sign: DPG's overall normally lies there. Signs are the model's published numbers
    (`other.csv`), and the category `other` leading by more than two points, which no row with published numbers shows.
    """
    out = Checked("Table 3: cells stand under their own heads, by published numbers of the model and by which category leads")
    keys, rows = components("table3"), complete(data["table3"], NUMERIC["table3"])
    out.examined = len(rows)
    leads = {label(row): keys[int(numbers(row, keys).argmax())] for row in rows}
    usual = sum(lead == "relation" for lead in leads.values())
    for row in rows:
        cells = [row[key] for key in NUMERIC["table3"]]
        known = [item for item in data["other"] if item["comparable_to"] == f"table3:{label(row)}" and not item["nfe"]]
        values = {item["metric"]: item["value"] for item in known}
        ordered = np.sort(numbers(row, keys))
        if values and [values.get(key) for key in NUMERIC["table3"]] == cells[1:] + cells[:1]:
            what = f"The row is {known[0]['model']}'s published row, digit for digit, shifted by one: its overall is printed first."
            computed = f"printed {', '.join(cells)}; published overall {values['overall']} ({known[0]['source']})"
            out.add("contradiction", "Table 3", label(row), what, computed)
            if known[0]["model"] != label(row):
                out.add(
                    "contradiction",
                    "Table 3",
                    label(row),
                    f"The digits are those of another model, {known[0]['model']}.",
                    known[0]["source"],
                )
        elif values and values.get("overall") == cells[0] != cells[-1]:
            computed = f"printed {', '.join(cells)}; published overall {values['overall']} ({known[0]['source']})"
            out.add("contradiction", "Table 3", label(row), "The model's published overall is printed first, under “global”.", computed)
        elif leads[label(row)] == "other" and ordered[-1] - ordered[-2] > 2:
            what = f"“other” leads by more than two points; shifted by one it is “relation”, which leads in {usual} of {len(rows)} rows: "
            computed = f"“other” leads by {ordered[-1] - ordered[-2]:.2f}; overall would be {cells[0]} instead of {cells[-1]}"
            out.add("doubtful", "Table 3", label(row), what + "the overall is probably printed first.", computed)
    return out


def alike(data: Published) -> Checked:
    """Two models whose columns are all but equal, or differ by one constant, within rounding."""
    out = Checked("Tables 2, 3, 4: no two models agree in all columns but one, or differ by one constant")
    for table in SCORES:
        keys = components(table)
        pairs = list(itertools.combinations(complete(data[table], NUMERIC[table]), 2))
        out.examined += len(pairs)
        equal = [sum(a[key] == b[key] for key in keys) for a, b in pairs]
        spread = [float(np.ptp(numbers(a, keys) - numbers(b, keys))) for a, b in pairs]
        for (a, b), same, width in zip(pairs, equal, spread, strict=True):
            names = f"{label(a)}, {label(b)}"
            if same == len(keys) - 1:
                what = f"The two models agree in {same} of {len(keys)} columns; {equal.count(same) - 1} other of {len(pairs)} pairs do."
                out.add("note", title(table), names, what, "; ".join(f"{key} {a[key]}, {b[key]}" for key in keys if a[key] != b[key]))
            elif same == 0 and width <= 4 * half_unit(a[keys[0]]) + 1e-9:
                computed = ", ".join(f"{value:+.2f}" for value in numbers(b, keys) - numbers(a, keys))
                computed += f"; range {width:.2f} against a median of {np.median(spread):.2f} over {len(pairs)} pairs"
                out.add("note", title(table), names, "The two models differ by one constant in every column, within rounding.", computed)
    return out


def narrow(data: Published) -> Checked:
    out = Checked("Table 3: a row's five categories differ about as much as other rows' do (less than a sixth of the median range)")
    keys, rows = components("table3"), complete(data["table3"], NUMERIC["table3"])
    out.examined = len(rows)
    ranges = {label(row): float(np.ptp(numbers(row, keys))) for row in rows}
    middle = float(np.median(list(ranges.values())))
    flat = {name: width for name, width in ranges.items() if width < middle / 6}
    if flat:
        computed = ", ".join(f"{name} {width:.2f}" for name, width in flat.items()) + f"; median of all rows {middle:.2f}"
        out.add("note", "Table 3", ", ".join(flat), "The five categories are all but equal, unlike in other rows.", computed)
    return out


def same_model_two_tables(data: Published) -> Checked:
    out = Checked("Table 1's GenEval equals Table 2's overall, same model and NFE")
    for row in data["table2"]:
        twins = [other for other in data["table1"] if label(other) == label(row) and row["nfe"] in ("", other["nfe"])]
        out.examined += bool(twins)
        if twins and all(float(twin["geneval"]) != float(row["overall"]) for twin in twins):
            computed = f"Table 1 {', '.join(twin['geneval'] for twin in twins)}; Table 2 {row['overall']}"
            out.add("contradiction", "Tables 1, 2", label(row), "The two tables give different values for one model.", computed)
    return out


def more_steps(data: Published) -> Checked:
    out = Checked("Table 1: NFE 2 is no worse than NFE 1 (FID, CLIP, GenEval)")
    by_name = {(label(row), row["nfe"]): row for row in data["table1"]}
    worse = {}
    for (name, nfe), one in by_name.items():
        if nfe == "1" and (two := by_name.get((name, "2"))):
            out.examined += 1
            signs = (("fid", -1), ("clip", 1), ("geneval", 1))
            found = [f"{key} {one[key]} to {two[key]}" for key, sign in signs if sign * (float(two[key]) - float(one[key])) < 0]
            worse |= {name: found} if found else {}
    if worse:
        computed = "; ".join(f"{name}: {', '.join(found)}" for name, found in worse.items())
        out.add("note", "Table 1", ", ".join(worse), f"Two steps score below one step in {len(worse)} of {out.examined} models.", computed)
    return out


def larger_is_faster(data: Published) -> Checked:
    out = Checked("Table 1: the larger of two siblings is not the faster")
    family = re.compile(r"\s[\d.]+B$")
    for one, two in itertools.permutations([row for row in data["table1"] if family.search(label(row))], 2):
        if (
            family.sub("", label(one)) == family.sub("", label(two))
            and one["nfe"] == two["nfe"]
            and float(one["params_b"]) < float(two["params_b"])
        ):
            out.examined += 1
            if float(two["latency_s"]) < float(one["latency_s"]):
                computed = f"{two['params_b']}B: {two['latency_s']} s; {one['params_b']}B: {one['latency_s']} s"
                out.add("note", "Table 1", f"{label(two)}, NFE {two['nfe']}", f"The larger model is faster than {label(one)}.", computed)
    return out


def against_sibling(data: Published) -> Checked:
    """APEX and Sana-Sprint run the same network at 0.6B and 1.6B: where the older method is ahead."""
    out = Checked("Table 1: APEX is ahead of Sana-Sprint on the same network (FID, CLIP, GenEval)")
    for nfe, size in itertools.product(("2", "1"), ("0.6B", "1.6B")):
        ours, theirs = (find(data["table1"], {"method": f"{name} {size}", "nfe": nfe}) for name in ("APEX", "Sana-Sprint"))
        if ours and theirs:
            out.examined += 1
            signs = (("fid", -1), ("clip", 1), ("geneval", 1))
            behind = [key for key, sign in signs if sign * (float(ours[0][key]) - float(theirs[0][key])) < 0]
            if behind:
                computed = "; ".join(f"{key} {ours[0][key]} against {theirs[0][key]}" for key in behind)
                out.add("note", "Table 1", f"APEX {size}, NFE {nfe}", "Sana-Sprint, the same network, is ahead in these columns.", computed)
    return out


def training_curves(data: Published) -> Checked:
    out = Checked("Table 5: one data set leads in every setting, and scores rise with steps")
    cells = {(row["model"], row["dataset"], int(row["steps"])): float(row["geneval"]) for row in data["table5"]}
    one, two = sorted({key[1] for key in cells})
    leads = {(model, steps): cells[model, one, steps] - cells[model, two, steps] for model, data_set, steps in cells if data_set == one}
    minority = [key for key, value in leads.items() if (value > 0) != (sum(v > 0 for v in leads.values()) > len(leads) / 2)]
    out.examined = len(leads)
    for model, steps in minority:
        computed = f"{one} {cells[model, one, steps]:.2f}, {two} {cells[model, two, steps]:.2f}"
        what = f"The lead of {one} turns round, here and in {len(minority) - 1} other of {len(leads)} settings."
        out.add("note", "Table 5", f"{model}, {steps} steps", what, computed)
    for model, dataset in sorted({key[:2] for key in cells}):
        curve = sorted((steps, value) for (name, data_set, steps), value in cells.items() if (name, data_set) == (model, dataset))
        out.examined += len(curve) - 1
        for (early, low), (late, high) in itertools.pairwise(curve):
            if high < low:
                computed = f"{low:.2f} after {early}, {high:.2f} after {late}"
                out.add("note", "Table 5", f"{model}, {dataset}", "The score falls with more steps.", computed)
    return out


def blanks(data: Published) -> Checked:
    out = Checked("Tables 2, 3, 4: rows with an overall have the columns that it sums up")
    empty = {}
    for table in SCORES:
        for row in data[table]:
            out.examined += 1
            missing = [key for key in components(table) if not row[key]]
            empty |= {f"{label(row)} ({title(table)})": len(missing)} if missing else {}
    if empty:
        computed = ", ".join(f"{name}: {count}" for name, count in empty.items())
        out.add(
            "omission",
            "Tables 2, 3, 4",
            ", ".join(empty),
            "Columns are missing, so the overall cannot be checked.",
            f"missing columns: {computed}",
        )
    return out


CHECKS = (
    overall_is_mean, overall_is_weighted, repeated, shifted, alike, narrow, same_model_two_tables, more_steps, larger_is_faster,
    against_sibling, training_curves, blanks,
)  # fmt: skip
