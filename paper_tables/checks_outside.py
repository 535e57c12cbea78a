"""Checks of the paper's tables against outside facts: public networks, the machine, other papers, sampling error."""

from __future__ import annotations

import math
import re
from typing import Any

from paper_tables.checks import Checked, components
from paper_tables.published import GENEVAL_TASKS, Published, Row, find, half_unit, label

# Images per GenEval task: 4 for each of its 553 prompts (djghosh13/geneval, prompts/evaluation_metadata.jsonl).
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
    """Table 1's parameter column against the public networks, and its LoRA counts against the published targets."""
    out = Checked("parameter counts", "Table 1: parameters against the public configurations (10% allowed); trainable LoRA parameters against the published targets")
    agree = []
    for item in data.networks["parameters"]:
        for row in data["table1"]:
            if not label(row).startswith(tuple(item["rows"])) or (row["nfe"] != "1" and find(data["table1"], {"method": label(row), "nfe": "1"})):
                continue  # a model that stands in the table at both NFEs is looked at once
            out.examined += 1
            printed, public = float(row["params_b"]), item["billions"]
            if abs(printed - public) > max(0.1 * public, half_unit(row["params_b"])):
                out.add("certain", "Table 1", label(row), "params_b", f"The printed parameter count is not that of {item['network']}.", f"printed {row['params_b']}B, public {public}B ({item['source']}): {printed / public:.2f} of it")
    for rank, billions in sorted({match.groups() for row in data["table1"] if (match := re.search(r"r=(\d+) \(([\d.]+)B", row["trainable_note"]))}):
        out.examined += 1
        count = lora_parameters(data.networks["qwen_image"], data.networks["lora"], int(rank)) / 1e9
        if abs(count - float(billions)) > half_unit(billions) + 1e-9:
            out.add("certain", "Table 1", f"LoRA r={rank}", "trainable_note", "The trainable parameters do not follow from the published LoRA targets.", f"computed {count:.4f}B, printed {billions}B")
        else:
            agree.append(f"r={rank}: {count:.4f}B")
    out.note = f"LoRA counts follow from the published targets ({', '.join(agree)})" if agree else ""
    return out


def _extra_step(one: Row, two: Row) -> tuple[float, float, float]:
    """Seconds that the second step costs per image at batch 10: least, printed, most (rounding allowed for)."""
    first, second = float(one["throughput_samples_s"]), float(two["throughput_samples_s"])
    a, b = half_unit(one["throughput_samples_s"]), half_unit(two["throughput_samples_s"])
    return 1 / (second + b) - 1 / (first - a), 1 / second - 1 / first, 1 / (second - b) - 1 / (first + a)


def _two_step_rows(data: Published) -> list[tuple[Row, Row]]:
    """(NFE 1 row, NFE 2 row) of every model that stands in Table 1 with one network for both."""
    by_name = {(label(row), row["nfe"]): row for row in data["table1"]}
    return [(row, by_name[name, "2"]) for (name, nfe), row in by_name.items() if nfe == "1" and (name, "2") in by_name]


def extra_step(data: Published) -> Checked:
    """What one more network evaluation costs, from the difference of NFE 2 and NFE 1, against smaller networks and the machine's peak."""
    out = Checked("cost of one more step", "Table 1: 1/throughput at NFE 2 minus NFE 1 = seconds per image of one more evaluation, against smaller networks and the machine's peak")
    pairs = _two_step_rows(data)
    out.examined = len(pairs)
    network, machine = data.networks["qwen_image"], data.networks["machine"]
    work = image_flops(network) / 1e12
    for one, two in pairs:
        _, value, most = _extra_step(one, two)
        small = [(label(other), _extra_step(other, again)[0]) for other, again in pairs if float(other["params_b"]) * 5 <= float(one["params_b"])]
        dearer = [(name, least) for name, least in small if least > most]
        if small and len(dearer) == len(small):
            name, least = min(dearer, key=lambda item: item[1])
            out.add("certain", "Table 1", label(one), "throughput_samples_s", f"One more step of this {one['params_b']}B network costs less per image than one more step of every network at most a fifth its size ({len(small)} rows).", f"{1e3 * value:.1f} ms (at most {1e3 * most:.1f}); the cheapest of the small ones, {name}: at least {1e3 * least:.1f} ms")
        if label(one).startswith(tuple(network["rows"])) and most > 0:
            rate = work / most
            if rate > machine["peak_tflops"]:
                alone = float(two["latency_s"]) - float(one["latency_s"])
                out.add("likely", "Table 1", label(one), "throughput_samples_s", f"At {network['resolution']} px one evaluation for one image is at least {work:.1f} TFLOP; the second step's printed cost needs more than the peak of one {machine['name']} ({machine['peak_tflops']} TFLOP/s). Throughput cannot be one {machine['name']} running the second step on ten images.", f"{rate:.0f} TFLOP/s or more, {rate / machine['peak_tflops']:.1f} x peak; {machine['batch']} images: {1e3 * machine['batch'] * value:.0f} ms, one image: {1e3 * alone:.0f} ms")
    return out


def same_network_speed(data: Published) -> Checked:
    """Rows of one network at one NFE: LoRA merges into the weights, so their times should agree."""
    out = Checked("one network, several speeds", "Table 1: rows that run the same network at the same NFE (LoRA merges into the weights)")
    for item in data.networks["parameters"]:
        for nfe in sorted({row["nfe"] for row in data["table1"]}):
            rows = [row for row in data["table1"] if row["nfe"] == nfe and label(row).startswith(tuple(item["rows"]))]
            if len(rows) < 2 or len({family for row in rows for family in item["rows"] if label(row).startswith(family)}) < 2:
                continue
            out.examined += 1
            for column, decimals in (("throughput_samples_s", 2), ("latency_s", 2)):
                values = sorted((float(row[column]), label(row)) for row in rows)
                (low, slow), (high, fast) = values[0], values[-1]
                if high / low > 1.05:
                    out.add("note", "Table 1", f"{item['network']}, NFE {nfe}", column, "Rows that run the same network differ in speed; a difference of this size between methods says nothing.", f"{low:.{decimals}f} ({slow}) to {high:.{decimals}f} ({fast}): {100 * (high / low - 1):.0f}%")
    return out


def copied(data: Published) -> Checked:
    """Table 1's baselines against Sana-Sprint's own table."""
    out = Checked("rows copied", "Table 1: baselines that equal Sana-Sprint's own table in every column")
    keys = [key for key in ("throughput_samples_s", "latency_s", "params_b", "fid", "clip", "geneval")]
    same, rows = [], []
    for row in data["table1"]:
        twins = find(data["sana_sprint"], {"method": row["method"], "nfe": row["nfe"]})
        if twins:
            rows.append(row)
            same += [f"{label(row)} ({row['nfe']})"] if all(row[key] == twins[0][key] for key in keys) else []
    out.examined = len(rows)
    if same:
        out.add("likely", "Table 1", f"{len(same)} of {len(rows)} shared rows", "all", "The rows equal Sana-Sprint's own table in every column, times included: copied, not measured beside the paper's models.", ", ".join(same))
    return out


def left_out(data: Published) -> Checked:
    """Numbers of the same network, metric and NFE in another paper that reach or pass the row they compare to."""
    out = Checked("numbers left out", "Tables 1, 3, 4: results of other papers on the same network, metric and NFE that the tables do not show")
    column = {"table1": "geneval", "table3": "overall", "table4": "overall"}
    for item in data["other"]:
        table, name = item["comparable_to"].split(":", 1)
        if table not in column or item["metric"] != "overall" or not item["nfe"]:
            continue
        rows = [row for row in data[table] if label(row) == name and (table != "table1" or row["nfe"] == item["nfe"])]
        shown = any(label(row) == item["model"] for row in data[table])
        out.examined += 1
        if rows and not shown:
            ours, theirs = float(rows[0][column[table]]), float(item["value"])
            relation = "above" if theirs > ours else "equal to" if theirs == ours else "below"
            out.add("certain" if theirs >= ours else "note", f"Table {table[-1]}", f"{name}, NFE {item['nfe']}", column[table], f"The table leaves out {item['model']} ({item['setting']}), {relation} the paper's own row.", f"{item['benchmark']} {item['value']} ({item['source']}) against {rows[0][column[table]]}")
    return out


def protocol(data: Published) -> Checked:
    """Rows measured under another prompt protocol than the benchmark's."""
    out = Checked("mixed protocols", "Table 2: rows whose published number belongs to rewritten prompts")
    for row in data["table2"]:
        known = [item for item in data["other"] if item["comparable_to"] == f"table2:{label(row)}"]
        out.examined += bool(known)
        rewritten = [item for item in known if "rewritten" in item["setting"] and item["value"] == row["overall"]]
        own = [item for item in known if "rewritten" not in item["setting"] and item["value"] != row["overall"]]
        if rewritten and own:
            out.add("likely", "Table 2", label(row), "overall", "The row is the model's score on rewritten prompts and stands among rows on the benchmark's own.", f"printed {row['overall']}; {own[0]['value']} with {own[0]['setting']} ({own[0]['source']})")
    return out


def geneval_error(row: Row, clustered: bool) -> float:
    """Standard error of GenEval's overall: binomial per task, four images a prompt counted as four draws, or as one."""
    total = 0.0
    for column, task in GENEVAL_TASKS.items():
        p = float(row[column])
        total += p * (1 - p) / (GENEVAL_PROMPTS[task] * (1 if clustered else 4))
    return math.sqrt(total) / len(GENEVAL_TASKS)


def distinguishable(data: Published) -> Checked:
    """Whether Table 2's differences from the teacher and from TwinFlow can be told from chance at 553 x 4 images."""
    out = Checked("within sampling error", "Table 2: APEX against Qwen-Image and TwinFlow, difference over its standard error, images of one prompt independent or fully dependent")
    for name in ("Qwen-Image", "TwinFlow"):
        for other in find(data["table2"], {"model": name}):
            for row in find(data["table2"], {"prefix": "APEX 20B"}):
                if not all(row[key] and other[key] for key in components("table2")):
                    continue
                out.examined += 1
                difference = float(row["overall"]) - float(other["overall"])
                free, bound = (difference / math.hypot(geneval_error(row, c), geneval_error(other, c)) for c in (False, True))
                if abs(bound) < 1.96:
                    how = "borderline: it depends on how alike the four images of a prompt are" if abs(free) >= 1.96 else "not told apart from chance under either assumption"
                    out.add("note", "Table 2", f"{label(row)} against {name}", "overall", f"The difference is {how}.", f"{difference:+.2f}: {free:+.1f} standard errors with independent images, {bound:+.1f} with fully dependent ones")
    return out


CHECKS = (parameter_counts, extra_step, same_network_speed, copied, left_out, protocol, distinguishable)
