"""What was measured here, every row x NFE: quality, coverage, speed, cost; and each row beside the guided teacher."""

from __future__ import annotations

from dataclasses import replace

from paper_tables import cells
from paper_tables.cells import COVERAGE, measured, missing, number, plain, why_missing
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.tables_paper import remark
from paper_tables.view import REFERENCE_NAMES, TASK_NAMES, TASKS, Key, View

# key, head, group, metric, decimals (None: three significant digits)
SCORES = (
    ("overall", "overall ↑", "GenEval", "geneval/overall", 2),
    *((task, TASK_NAMES[task], "GenEval", f"geneval/{task}", 2) for task in TASKS),
    ("fid", "FID ↓", "distribution", "fid", 2),
    ("fid_floor", "its floor", "distribution", "fid/floor", 2),
    ("kid", "KID ↓", "distribution", "kid", None),
    ("clip_score", "CLIP score ↑", "text agreement", "clip_score", 2),
    ("latency", "latency, s ↓", "speed, end to end", "speed/latency_b1_s", None),
    ("throughput", "images/s ↑", "speed, end to end", "speed/throughput_b10_sps", None),
    ("speed_memory", "peak MB", "speed, end to end", "speed/peak_memory_mb", None),
    ("text_s", "text, s", "latency by stage", "speed/stage/text_b1_s", None),
    ("denoise_s", "denoise, s", "latency by stage", "speed/stage/denoise_b1_s", None),
    ("decode_s", "decode, s", "latency by stage", "speed/stage/decode_b1_s", None),
)
# key, head, field of the records' `training`
TRAINING = (
    ("train_forwards", "forward-equivalents", "forward_equivalents"),
    ("train_flops", "FLOP", "flops"),
    ("train_steps", "steps", "steps"),
    ("train_seconds", "seconds", "wall_seconds"),
    ("train_memory", "peak MB", "peak_memory_mb"),
)
NAMES, BEHIND = ["row", "nfe"], [*COVERAGE, "n", "seeds"]
SPEED = ["latency", "throughput", "speed_memory", "text_s", "denoise_s", "decode_s"]
PANELS = [
    ("(a) Quality", [*NAMES, "overall", "unseen", "fid", "fid_floor", "kid", "clip_score", *BEHIND]),
    ("(b) GenEval by task", [*NAMES, *TASKS, "seen", "unseen", *BEHIND]),
    ("(c) Speed and size", [*NAMES, *SPEED, "parameters", "trainable", *BEHIND, "hardware"]),
    ("(d) Cost of training, mean over seeds", [*NAMES, *(key for key, *_ in TRAINING), "trainable", *BEHIND]),
]


def _why_unseen(view: View, key: Key) -> str:
    return cells.TEST_ALONE if view.images_only(key[0]) and view.evaluators(key) else why_missing(view, key, "geneval")


def _row(view: View, key: Key) -> dict[str, Cell]:
    line = cells.name_cells(view, key)
    for name, _, _, metric, decimals in SCORES:
        line[name] = measured(view, key, metric, decimals, interval=name != "fid_floor")
    for name, found in (("seen", view.seen(key)), ("unseen", view.unseen(key))):
        line[name] = number(found) if found else missing(_why_unseen(view, key))
    untrained = key[0] in REFERENCE_NAMES or key[0] == "teacher" or view.evaluators(key)
    why = cells.NO_NETWORK if view.images_only(key[0]) else cells.NO_TRAINING if untrained else why_missing(view, key, "geneval")
    for name, _, field in TRAINING:
        line[name] = plain(found := view.training(key, field), why)
        if name == "train_seconds" and found is not None:
            line[name] = replace(line[name], note=view.training_timing(key[0]))
    return line | cells.size_cells(view, key) | cells.common_cells(view, key) | {"hardware": cells.hardware_cell(view, key)}


def world(view: View) -> Table:
    """Every row x NFE with all that was measured."""
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE")]
    columns += [Column(name, head, group) for name, head, group, *_ in SCORES]
    columns += [Column("seen", "seen", "GenEval"), Column("unseen", "unseen ↑", "GenEval")]
    columns += [Column("parameters", "parameters", "network"), Column("trainable", "trainable", "network")]
    columns += [Column(name, head, "training") for name, head, _ in TRAINING]
    columns += [*cells.common_columns(), Column("hardware", "hardware", numeric=False)]
    tasks = ", ".join(TASK_NAMES[task] for task in view.unseen_tasks)
    words = (
        f"Every row at every NFE, prompts of the {view.split} set. NFE counts steps; a guided step of the teacher runs the network twice. "
    )
    if view.measures("geneval", "unseen"):
        words += "Unseen: GenEval on combinations that no training image showed"
        words += f"; seen: the same tasks ({tasks}) of the {view.split} set. " if tasks else ". "
    words += "FID's floor is real against real at the same n. "
    if view.measures("coverage"):
        words += "Spread, precision and recall say whether the images of a prompt vary as real "
        words += "ones do: GenEval does not see a model that always draws the same picture. "
    words += "n: images per seed. Latency is at batch 1, throughput at batch 10; their bounds are quartiles."
    lines = [Line(_row(view, key)) for key in view.keys]
    title = "World: all measurements" if view.of_a_world else "All measurements"
    return Table("world", title, words, columns, remark=remark(view), lines=lines, panels=PANELS)


RELATIVE = (
    ("overall", "GenEval ↑", "geneval/overall", ""),
    ("unseen", "GenEval unseen ↑", "geneval/overall", "unseen"),
    ("clip_score", "CLIP score ↑", "clip_score", ""),
    ("fid", "FID ↓", "fid", ""),
    ("latency", "latency ↓", "speed/latency_b1_s", ""),
    *((name, f"{name} ↑", f"coverage/{name}", "") for name in COVERAGE),
)


def relative(view: View) -> Table:
    """Every row as a share of the guided teacher of many steps."""
    steps = view.teacher[1]
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE"), *(Column(name, head) for name, head, *_ in RELATIVE)]
    columns += [Column("n", "n"), Column("seeds", "seeds")]
    caption = (
        f"Each row's number over the guided {steps}-step teacher's, prompts of the {view.split} set: 1 means equal. GenEval is compared "
        "prompt by prompt (bootstrap over prompts within task, the same prompts for both); the other intervals take the two as "
        "independent, which makes them too wide. Of a row with one seed they hold the training noise of the rows with three. An interval "
        "that holds 1 tells nothing apart. n: images per seed."
    )
    table = Table("relative", f"Against the guided {steps}-step teacher", caption, columns, remark=remark(view))
    for key in view.keys:
        if key == view.teacher:
            continue
        behind = cells.common_cells(view, key)
        line = cells.name_cells(view, key) | {"n": behind["n"], "seeds": behind["seeds"]}
        for name, _, metric, split in RELATIVE:
            found = view.relative(key, metric, split or None)
            if found:
                timed = " ".join(dict.fromkeys(filter(None, map(view.timing, (key, view.teacher))))) if metric.startswith("speed/") else ""
                line[name] = replace(number(found), note=timed)
            elif view.get(key, metric, split or None) is None and split == "unseen":
                line[name] = missing(_why_unseen(view, key))
            elif view.get(key, metric, split or None) is None:
                line[name] = missing(why_missing(view, key, metric.split("/")[0]))
            elif view.get(view.teacher, metric, split or None) is None:
                line[name] = missing(f"The guided {steps}-step teacher has no such number in this results folder.")
            else:
                line[name] = missing("Does not apply: the teacher's number is zero.")
        table.lines.append(Line(line))
    return table
