"""Checks of the paper's tables against outside facts: public networks, the machine, other papers, sampling error."""

from __future__ import annotations

import math
import re
from typing import Any

from paper_tables.checks import Checked, components, title
from paper_tables.published import GENEVAL_TASKS, Published, Row, find, half_unit, label

# Prompts of each GenEval task, four images each (djghosh13/geneval, prompts/evaluation_metadata.jsonl).
GENEVAL_PROMPTS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


def lora_parameters(network: dict[str, Any], lora: dict[str, Any], rank: int) -> int:
    """Trainable parameters of rank-`rank` LoRA on the published targets: rank x (inputs + outputs) for each linear layer."""
    width, wide, time = network["width"], network["mlp_width"], network["time_embedding_in"]
    block = lora["attention_projections"] * 2 * width + lora["mlp_projections"] * (width + wide)
    return rank * (network["layers"] * block + (time + width) + 2 * width)


def image_flops(network: dict[str, Any]) -> float:
    """Least work of one network evaluation for one image: its image tokens through the linear layers, 2 per weight and token.

    Text tokens, attention products and modulation are left out, so the true cost is higher.
    """
    tokens = (network["resolution"] / network["pixels_per_token"]) ** 2
    return 2.0 * tokens * network["layers"] * (4 * network["width"] ** 2 + 2 * network["width"] * network["mlp_width"])


def parameter_counts(data: Published) -> Checked:
    out = Checked("Table 1: parameters agree with the public configurations, 10% allowed")
    for item in data.networks["parameters"]:
        rows = {label(row): row for row in data["table1"] if label(row).startswith(tuple(item["rows"]))}
        public = item["billions"]
        out.examined += len(rows)
        wrong = {
            name: row["params_b"]
            for name, row in rows.items()
            if abs(float(row["params_b"]) - public) > max(0.1 * public, half_unit(row["params_b"]))
        }
        if wrong:
            computed = f"printed {', '.join(sorted(set(wrong.values())))}B; public {public}B ({item['source']})"
            out.add(
                "contradiction", "Table 1", ", ".join(wrong), f"The printed parameter count is not that of the {item['network']}.", computed
            )
    return out


def lora_counts(data: Published) -> Checked:
    out = Checked("Table 1: trainable LoRA parameters follow from the published targets (r=32: 0.2B, r=64: 0.4B)")
    for rank, billions in sorted(
        {match.groups() for row in data["table1"] if (match := re.search(r"r=(\d+) \(([\d.]+)B", row["trainable_note"]))}
    ):
        out.examined += 1
        count = lora_parameters(data.networks["qwen_image"], data.networks["lora"], int(rank)) / 1e9
        if abs(count - float(billions)) > half_unit(billions) + 1e-9:
            what = "The trainable parameters do not follow from the published LoRA targets."
            out.add("contradiction", "Table 1", f"LoRA r={rank}", what, f"computed {count:.4f}B, printed {billions}B")
    return out


def _extra_step(one: Row, two: Row) -> tuple[float, float, float]:
    """Seconds that the second step costs per image at batch 10: least, printed, most (rounding allowed for)."""
    first, second = float(one["throughput_samples_s"]), float(two["throughput_samples_s"])
    a, b = half_unit(one["throughput_samples_s"]), half_unit(two["throughput_samples_s"])
    return 1 / (second + b) - 1 / (first - a), 1 / second - 1 / first, 1 / (second - b) - 1 / (first + a)


def extra_step(data: Published) -> Checked:
    """What one more network evaluation costs per image, against smaller networks and against the machine's peak."""
    out = Checked("Table 1: one more step (1/throughput at NFE 2 minus NFE 1) fits the network's size and the machine's peak")
    by_name = {(label(row), row["nfe"]): row for row in data["table1"]}
    pairs = {name: (row, by_name[name, "2"]) for (name, nfe), row in by_name.items() if nfe == "1" and (name, "2") in by_name}
    out.examined = len(pairs)
    network, machine = data.networks["qwen_image"], data.networks["machine"]
    large = {name: _extra_step(*pair) for name, pair in pairs.items() if name.startswith(tuple(network["rows"]))}
    small = {name: _extra_step(*pair) for name, pair in pairs.items() if float(pair[0]["params_b"]) * 5 <= 20}
    cheapest, (least, *_) = min(small.items(), key=lambda item: item[1][0])
    cheap = {name: value for name, (_, value, most) in large.items() if most < least}
    if cheap:
        computed = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in cheap.items())
        what = f"One more step of the 20B network costs less per image than one more step of any network of 4B or less ({len(small)} rows)."
        out.add(
            "doubtful",
            "Table 1",
            ", ".join(cheap),
            what,
            f"{computed}; the cheapest of the small ones, {cheapest}: at least {1e3 * least:.1f} ms",
        )
    work, peak = image_flops(network) / 1e12, machine["peak_tflops"]
    fast = {name: work / most for name, (_, _, most) in large.items() if 0 < most < work / peak}
    if fast:
        what = f"The second step needs more than the peak of one {machine['name']} ({peak} TFLOP/s): "
        what += f"at {network['resolution']} px one evaluation for one image is at least {work:.1f} TFLOP."
        computed = ", ".join(f"{name} {rate / peak:.1f} x peak" for name, rate in fast.items())
        out.add("doubtful", "Table 1", ", ".join(fast), what, f"at least {computed}")
    return out


def same_network_speed(data: Published) -> Checked:
    out = Checked("Table 1: rows that run the same network at the same NFE have the same speed, 5% allowed (LoRA merges into the weights)")
    for item in data.networks["parameters"]:
        found, names = [], set()
        for nfe in ("1", "2"):
            rows = [row for row in data["table1"] if row["nfe"] == nfe and label(row).startswith(tuple(item["rows"]))]
            out.examined += len(rows) > 1
            for column, unit in (("throughput_samples_s", "images/s"), ("latency_s", "s")):
                values = sorted((float(row[column]), label(row)) for row in rows)
                if values and values[-1][0] / values[0][0] > 1.05:
                    (low, slow), (high, fast) = values[0], values[-1]
                    found.append(f"NFE {nfe}: {low:.2f} ({slow}) to {high:.2f} {unit} ({fast}), {100 * (high / low - 1):.0f}%")
                    names |= {slow, fast}
        if found:
            what = f"Rows that run the {item['network']} differ in speed; a difference of this size between methods says nothing."
            out.add("note", "Table 1", ", ".join(sorted(names)), what, "; ".join(found))
    return out


def copied(data: Published) -> Checked:
    out = Checked("Table 1: baselines were measured beside the paper's models, not copied from Sana-Sprint's own table")
    keys = ("throughput_samples_s", "latency_s", "params_b", "fid", "clip", "geneval")
    same = []
    for row in data["table1"]:
        twins = find(data["sana_sprint"], {"method": row["method"], "nfe": row["nfe"]})
        out.examined += bool(twins)
        if twins and all(row[key] == twins[0][key] for key in keys):
            same.append(label(row))
    if same:
        what = f"{len(same)} of {out.examined} shared rows equal Sana-Sprint's own table in every column, times included: "
        what += "copied, not measured beside the paper's models."
        out.add("note", "Table 1", ", ".join(dict.fromkeys(same)), what, f"{len(same)} rows x {len(keys)} columns, every digit")
    return out


def left_out(data: Published) -> Checked:
    out = Checked("Tables 1, 3, 4: results of other papers on the same network, benchmark and NFE stand in the table")
    column = {"table1": "geneval", "table3": "overall", "table4": "overall"}
    below: dict[str, list[str]] = {}
    for item in data["other"]:
        table, name = item["comparable_to"].split(":", 1)
        if table not in column or not item["nfe"]:
            continue
        rows = [row for row in data[table] if label(row) == name and (table != "table1" or row["nfe"] == item["nfe"])]
        out.examined += 1
        if not rows or any(label(row) == item["model"] for row in data[table]):
            continue
        ours, theirs = rows[0][column[table]], item["value"]
        words = f"{item['model']} {theirs} against {ours} (NFE {item['nfe']})"
        if float(theirs) < float(ours):
            below.setdefault(table, []).append(words)
            continue
        relation = "above" if float(theirs) > float(ours) else "equal to"
        what = f"The table leaves out {item['model']} ({item['setting']}, same laboratory), {relation} the paper's own row."
        row = name if name.endswith("NFE)") else f"{name}, NFE {item['nfe']}"
        out.add("omission", title(table), row, what, f"{item['benchmark']} {theirs} against {ours} ({item['source']})")
    for table, words in below.items():
        out.add(
            "omission",
            title(table),
            "APEX",
            "The table leaves out results of the same laboratory, below the paper's own rows.",
            "; ".join(words),
        )
    return out


def protocol(data: Published) -> Checked:
    out = Checked("Table 2: all rows use the benchmark's own prompts")
    for row in data["table2"]:
        known = [item for item in data["other"] if item["comparable_to"] == f"table2:{label(row)}"]
        out.examined += bool(known)
        rewritten = [item for item in known if "rewritten" in item["setting"] and item["value"] == row["overall"]]
        own = [item for item in known if "rewritten" not in item["setting"] and item["value"] != row["overall"]]
        if rewritten and own:
            computed = f"printed {row['overall']}; {own[0]['value']} with {own[0]['setting']} ({own[0]['source']})"
            what = "The row is the model's score on rewritten prompts; other rows are on the benchmark's own."
            out.add("doubtful", "Table 2", label(row), what, computed)
    return out


def geneval_error(row: Row, clustered: bool) -> float:
    """Standard error of GenEval's overall: binomial per task, a prompt's four images counted as one draw (clustered) or as four."""
    variance = 0.0
    for column, task in GENEVAL_TASKS.items():
        p = float(row[column])
        variance += p * (1 - p) / (GENEVAL_PROMPTS[task] * (1 if clustered else 4))
    return math.sqrt(variance) / len(GENEVAL_TASKS)


def distinguishable(data: Published) -> Checked:
    out = Checked("Table 2: APEX 20B's differences from Qwen-Image and TwinFlow are larger than sampling error at 553 x 4 images")
    for name in ("Qwen-Image", "TwinFlow"):
        found = []
        for other in find(data["table2"], {"model": name}):
            for row in find(data["table2"], {"prefix": "APEX 20B"}):
                if not all(row[key] and other[key] for key in components("table2")):
                    continue
                out.examined += 1
                difference = float(row["overall"]) - float(other["overall"])
                free, bound = (difference / math.hypot(geneval_error(row, c), geneval_error(other, c)) for c in (False, True))
                if abs(bound) < 1.96:
                    found.append(f"{label(row)} {difference:+.2f}: {free:.1f} or {bound:.1f} standard errors")
        if found:
            what = f"The lead over {name} is hard to tell from sampling error (a prompt's four images counted as four draws, or as one)."
            out.add("note", "Table 2", f"APEX 20B against {name}", what, "; ".join(found))
    return out


def made_for_the_benchmark(data: Published) -> Checked:
    out = Checked("Table 5: no training set holds data made for the benchmark that the rows are compared by")
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for row in data["table5"]:
        rows.setdefault((row["model"], row["steps"]), {})[row["dataset"]] = float(row["geneval"])
    last: dict[str, int] = {}
    for model, steps in rows:
        last[model] = max(int(steps), last.get(model, 0))
    out.examined = len({row["dataset"] for row in data["table5"]})
    for item in data.networks["made_for_a_benchmark"]:
        leads = []
        for model, steps in last.items():
            scores = dict(rows[model, str(steps)])
            with_it = scores.pop(item["dataset"], None)
            if with_it is not None and scores:
                other, without = max(scores.items(), key=lambda pair: pair[1])
                leads.append(f"{model} {with_it:.2f} against {without:.2f} with {other}")
        what = f"{item['name']} holds {item['part']}, made for {item['benchmark']}: a lead in {item['benchmark']} over a teacher, "
        what += "or over systems that were not trained on it, may be the data's, and not the method's."
        out.add("note", "Table 5", ", ".join(last), what, f"at the last step {'; '.join(leads)} ({item['source']})")
    return out


CHECKS = (
    parameter_counts,
    lora_counts,
    extra_step,
    same_network_speed,
    copied,
    left_out,
    protocol,
    made_for_the_benchmark,
    distinguishable,
)
