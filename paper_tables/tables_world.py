"""What was measured here, every row x NFE: quality, coverage, speed, cost; and each method beside its guided teacher."""

from __future__ import annotations

from paper_tables import cells, stats
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.tables_paper import remark
from paper_tables.view import REFERENCE_NAMES, TASK_NAMES, TASKS, Key, View

# key, head, metric, evaluator, decimals (None: three significant digits)
SCORES = (
    ("fid", "FID ↓", "fid", "fid", 2),
    ("fid_floor", "its floor", "fid/floor", "fid", 2),
    ("kid", "KID ↓", "kid", "fid", None),
    ("clip_score", "CLIP score ↑", "clip_score", "clip_score", 2),
    ("clip_real", "of real", "clip_score/real", "clip_score", 2),
    ("clip_shuffled", "of shuffled", "clip_score/shuffled", "clip_score", 2),
    ("spread", "spread ↑", "coverage/spread", "coverage", 2),
    ("precision", "precision ↑", "coverage/precision", "coverage", 2),
    ("recall", "recall ↑", "coverage/recall", "coverage", 2),
    ("latency", "latency b1, s ↓", "speed/latency_b1_s", "speed", None),
    ("throughput", "img/s b10 ↑", "speed/throughput_b10_sps", "speed", None),
    ("text_s", "text, s", "speed/stage/text_b1_s", "speed", None),
    ("denoise_s", "denoise, s", "speed/stage/denoise_b1_s", "speed", None),
    ("decode_s", "decode, s", "speed/stage/decode_b1_s", "speed", None),
    ("speed_memory", "peak MB", "speed/peak_memory_mb", "speed", None),
)
TRAINING = (
    ("train_forwards", "forward-equivalents", "forward_equivalents"),
    ("train_flops", "FLOP", "flops"),
    ("train_steps", "steps", "steps"),
    ("train_seconds", "wall, s", "wall_seconds"),
    ("train_memory", "peak MB", "peak_memory_mb"),
)
PANELS = [
    ("(a) Quality and coverage", ["row", "nfe", "overall", "unseen", "spread", "precision", "recall", "fid", "clip_score", "latency", "n", "seeds", "hardware"]),
    ("(b) GenEval by task", ["row", "nfe", *TASKS, "seen", "unseen", "spread", "n", "seeds"]),
    ("(c) FID, KID and CLIP score with their bounds", ["row", "nfe", "fid", "fid_floor", "kid", "clip_score", "clip_real", "clip_shuffled", "spread", "n", "seeds"]),
    ("(d) Speed and size", ["row", "nfe", "latency", "throughput", "text_s", "denoise_s", "decode_s", "speed_memory", "parameters", "trainable", "spread", "seeds", "hardware"]),
    ("(e) Training cost (mean over seeds)", ["row", "nfe", *(key for key, *_ in TRAINING), "spread", "seeds", "hardware"]),
]


def _row(view: View, key: Key) -> dict[str, Cell]:
    line = {"row": Cell(cells.row_name(key, view)), "nfe": Cell(cells.nfe_text(key))}
    line["overall"] = cells.measured(view, key, "geneval/overall", "geneval")
    for task in TASKS:
        line[task] = cells.measured(view, key, f"geneval/{task}", "geneval")
    for name, found in (("seen", view.seen(key)), ("unseen", view.unseen(key))):
        line[name] = cells.number(found) if found else cells.missing(cells.why_missing(view, key, "geneval"))
    for name, _, metric, evaluator, decimals in SCORES:
        line[name] = cells.measured(view, key, metric, evaluator, decimals)
    reference = key[0] in REFERENCE_NAMES
    absent = cells.NO_MODEL if reference else "The records of this row do not give it."
    if not view.evaluators(key) and not reference:
        absent = cells.why_missing(view, key, "geneval")
    line["parameters"] = cells.plain(view.info(key, "parameters"), absent, 0)
    line["trainable"] = cells.plain(view.info(key, "trainable_parameters"), absent if reference or not view.evaluators(key) else cells.NO_TRAINING, 0)
    for name, _, field in TRAINING:
        line[name] = cells.plain(view.training(key, field), absent if not view.evaluators(key) and not reference else cells.NO_TRAINING)
    return line | {"n": cells.n_cell(view, key), "seeds": cells.seeds_cell(view, key), "hardware": cells.hardware_cell(view, key)}


def world(view: View) -> Table:
    """Every row x NFE with all that was measured."""
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE"), Column("overall", "overall ↑", "GenEval")]
    columns += [Column(task, TASK_NAMES[task], "GenEval") for task in TASKS] + [Column("seen", "seen", "GenEval"), Column("unseen", "unseen ↑", "GenEval")]
    groups = {"fid": "distribution", "fid_floor": "distribution", "kid": "distribution", "spread": "coverage", "precision": "coverage", "recall": "coverage"}
    groups |= {"clip_score": "text agreement", "clip_real": "text agreement", "clip_shuffled": "text agreement"}
    columns += [Column(name, head, groups.get(name, "speed")) for name, head, *_ in SCORES]
    columns += [Column("parameters", "parameters"), Column("trainable", "trainable")]
    columns += [Column(name, head, "training") for name, head, _ in TRAINING]
    columns += [Column("n", "n"), Column("seeds", "seeds"), Column("hardware", "hardware", numeric=False)]
    caption = (
        f"Every row at every NFE, prompts of split {view.split}. Unseen: GenEval on colour-shape and relation pairs that no training image showed. FID has beside it its floor, real against real "
        "at the same n; the CLIP score what real renders and shuffled ones get. Spread, precision and recall say whether the images of a prompt vary as real ones do: GenEval does not see a "
        "one-step model that always draws the same picture. NFE counts steps; a guided step evaluates the network twice. n: images scored by GenEval. "
        f"Speed intervals are those of its records."
    )
    return Table("world", "World: all measurements", caption, columns, remark(view), [Line(_row(view, key)) for key in view.keys], PANELS)


RELATIVE = (
    ("overall", "GenEval ↑", lambda view, key: view.get(key, "geneval/overall")),
    ("unseen", "GenEval unseen ↑", lambda view, key: view.unseen(key)),
    ("spread", "spread ↑", lambda view, key: view.get(key, "coverage/spread")),
    ("precision", "precision ↑", lambda view, key: view.get(key, "coverage/precision")),
    ("recall", "recall ↑", lambda view, key: view.get(key, "coverage/recall")),
    ("clip_score", "CLIP score ↑", lambda view, key: view.get(key, "clip_score")),
    ("fid", "FID (lower is better) ↓", lambda view, key: view.get(key, "fid")),
    ("latency", "latency ↓", lambda view, key: view.get(key, "speed/latency_b1_s")),
)
TEACHER = ("teacher", 25)


def relative(view: View) -> Table:
    """Each method at NFE 1, and the references, as a fraction of the guided 25-step teacher."""
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE"), *(Column(name, head) for name, head, _ in RELATIVE), Column("n", "n"), Column("seeds", "seeds"), Column("hardware", "hardware", numeric=False)]
    caption = (
        "Each row's number over the guided 25-step teacher's: 1 means equal. Intervals by the delta method, the two taken as independent; both are scored on the same prompts, so the true "
        f"interval is narrower. An interval that includes 1 tells nothing apart. n: images scored by GenEval."
    )
    table = Table("relative", "One step against the guided 25-step teacher", caption, columns, remark(view))
    wanted = [key for key in view.keys if key not in (TEACHER, ("teacher", 50)) and key[1] <= 1]
    for key in wanted:
        line = {"row": Cell(cells.row_name(key, view)), "nfe": Cell(cells.nfe_text(key))}
        for name, _, get in RELATIVE:
            evaluator = {"latency": "speed", "fid": "fid", "clip_score": "clip_score", "overall": "geneval", "unseen": "geneval"}.get(name, "coverage")
            ours, theirs = get(view, key), get(view, TEACHER)
            quotient = stats.ratio(ours, theirs) if ours and theirs else None
            if quotient:
                line[name] = cells.number(quotient)
            elif ours and theirs is None:
                line[name] = cells.missing("The guided 25-step teacher has no such number in this results folder.")
            else:
                line[name] = cells.missing(cells.why_missing(view, key, evaluator) if not ours else "The teacher's number is zero.")
        table.lines.append(Line(line | {"n": cells.n_cell(view, key), "seeds": cells.seeds_cell(view, key), "hardware": cells.hardware_cell(view, key)}))
    return table
