"""Tables 1 and 2 in the paper's shape: its published numbers and what was measured here, side by side."""

from __future__ import annotations

from paper_tables import cells
from paper_tables.published import GENEVAL_TASKS, Published, Row, label, slug
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.view import Key, View

NEEDS_FULL_SCALE = (
    "Not run: this cell needs the system's public weights or training at that scale, the benchmark's own prompts and networks, and a GPU. "
    "Images made elsewhere in GenEval's folder layout fill it when the profile lists them under `external` with the row's name in small letters and hyphens, such as {example}."
)
NOT_PUBLISHED = "Does not apply: the paper has no such row."
PAPER_MACHINE = "A100 (the paper)"
TABLE1 = (
    ("throughput_samples_s", "img/s ↑", "speed/throughput_b10_sps", "speed", None),
    ("latency_s", "s ↓", "speed/latency_b1_s", "speed", None),
    ("fid", "FID ↓", "fid", "fid", 2),
    ("clip", "CLIP ↑", "clip_score", "clip_score", 2),
    ("geneval", "GenEval ↑", "geneval/overall", "geneval", 2),
)
TABLE2 = (*((column, column.replace("_", " "), f"geneval/{task}", "geneval", 2) for column, task in GENEVAL_TASKS.items()), ("overall", "overall", "geneval/overall", "geneval", 2))


def world_size(view: View) -> str:
    """What the measured rows are, and what they cannot say."""
    counts = [int(value) for value in view.all_values("parameters")]
    size = f"{max(counts) / 1e6:.1f}M-parameter" if counts and max(counts) < 1e9 else f"{max(counts) / 1e9:.1f}B-parameter" if counts else "small"
    if counts and max(counts) >= 1e8:
        return f"Measured rows: networks of up to {size.split('-')[0]} parameters."
    return (
        f"Measured rows without a published counterpart come from the embedded world: {size} networks drawing small scenes of coloured shapes, with the world's own detector, FID and CLIP networks. "
        "A 1M-parameter world cannot refute a claim at 20B, nor confirm it: it shows what an objective does where everything can be measured. Its FID and CLIP numbers are on another scale than the paper's."
    )


def interval_words(view: View) -> str:
    """How the intervals of this results folder came about."""
    several = any((found := view.get(key, "geneval/overall")) and found.seeds > 1 for key in view.keys)
    one = any((found := view.get(key, "geneval/overall")) and found.seeds == 1 for key in view.keys)
    words = ["95% intervals in brackets:"]
    if one:
        words.append("with one seed the record's own bootstrap over prompts (training noise is not in it)" + (";" if several else "."))
    if several:
        words.append("with several seeds the mean and Student's t-interval over seeds (prompts are the same for all, so their sampling error is not in it).")
    return " ".join(words)


def remark(view: View) -> str:
    """What holds for every table of this results folder."""
    return f"{interval_words(view)} {world_size(view)}"


def _full_scale(view: View) -> dict[tuple[str, int], Key]:
    """(slug of the row's name, NFE) -> its key, for records that are named like a row of the paper."""
    return {(slug(key[0]), key[1]): key for key in view.keys}


def _range(rows: list[Row], column: str) -> Cell:
    """The paper's values for one method: the value, or lowest to highest."""
    found = sorted((row[column] for row in rows if row[column]), key=float)
    if not found:
        return cells.missing(NOT_PUBLISHED, merge=True)
    return Cell(found[0] if found[0] == found[-1] else f"{found[0]}–{found[-1]}")


def _methods(view: View, key: Key) -> str:
    return str(view.info(key, "method") or key[0]).replace("-", "_")


def _measured_side(view: View, key: Key, columns: tuple, interval: bool) -> dict[str, Cell]:
    side = {f"our_{name}": cells.measured(view, key, metric, evaluator, decimals, interval or name in ("geneval", "overall")) for name, _, metric, evaluator, decimals in columns}
    side["our_spread"] = cells.measured(view, key, "coverage/spread", "coverage")
    return side | {"our_n": cells.n_cell(view, key), "our_seeds": cells.seeds_cell(view, key), "our_hardware": cells.hardware_cell(view, key)}


def _published_line(row: Row, nfe: str, columns: tuple, view: View, full: dict, measured_keys: list[str]) -> dict[str, Cell]:
    line = {"model": Cell(label(row)), "nfe": Cell(nfe or cells.NOT_APPLICABLE)}
    line |= {f"pub_{name}": Cell(row[name]) if row[name] else Cell(cells.NOT_APPLICABLE) for name, *_ in columns}
    key = full.get((slug(label(row)), int(nfe))) if nfe else None
    if key:
        return line | _measured_side(view, key, columns, interval=False)
    reason = NEEDS_FULL_SCALE.format(example="sana-sprint-0.6b")
    return line | {name: cells.missing(reason, merge=True) for name in measured_keys}


def _columns(columns: tuple, first: list[Column], last: list[Column]) -> list[Column]:
    published = [Column(f"pub_{name}", head, "published") for name, head, *_ in columns]
    ours = [Column(f"our_{name}", head, "measured here") for name, head, *_ in columns]
    ours += [Column("our_spread", "spread", "measured here"), Column("our_n", "n", "measured here"), Column("our_seeds", "seeds", "measured here")]
    return [*first, *published, *last, *ours, Column("our_hardware", "hardware", "measured here", numeric=False)]


def table1(view: View, data: Published) -> Table:
    """Table 1: speed and quality at NFE 2 and NFE 1."""
    columns = _columns(
        TABLE1,
        [Column("model", "model", numeric=False), Column("nfe", "NFE"), Column("params", "parameters")],
        [Column("pub_hardware", "hardware", "published", numeric=False)],
    )
    caption = (
        "Table 1 of arXiv 2604.12322v1 beside what was measured here. Throughput at batch 10, latency at batch 1, end to end. Spread: diversity of the images of one prompt "
        "relative to real ones, which GenEval does not see. For a measured row, `published` is the range over the paper's rows of its method at its NFE. "
        f"n: images scored by GenEval."
    )
    table = Table("table1", "Table 1: speed and quality of few-step models", caption, columns, remark(view))
    measured_keys = [column.key for column in columns if column.group == "measured here"]
    full = _full_scale(view)
    taken = set()
    for nfe in ("2", "1"):
        rows = [row for row in data["table1"] if row["nfe"] == nfe]
        for index, row in enumerate(rows):
            line = _published_line(row, nfe, TABLE1, view, full, measured_keys)
            note = f" ({row['trainable_note'].split(' (')[0]})" if "LoRA" in row["trainable_note"] and "LoRA" not in label(row) else ""
            line |= {"model": Cell(label(row) + note), "params": Cell(f"{row['params_b']}B"), "pub_hardware": Cell(PAPER_MACHINE)}
            table.lines.append(Line(line, f"Published, NFE {nfe}" if index == 0 else ""))
            taken.add((slug(label(row)), int(nfe)))
    for index, key in enumerate(key for key in view.keys if (slug(key[0]), key[1]) not in taken):
        same = [row for row in data["table1"] if int(row["nfe"]) == key[1] and _methods(view, key) in row["suite_methods"].replace("-", "_").split()]
        parameters = view.info(key, "parameters")
        line = {"model": Cell(cells.row_name(key, view)), "nfe": Cell(cells.nfe_text(key)), "params": Cell(f"{parameters / 1e6:.2f}M" if parameters else cells.NOT_APPLICABLE)}
        line |= {f"pub_{name}": _range(same, name) for name, *_ in TABLE1}
        line["pub_hardware"] = Cell(PAPER_MACHINE) if same else cells.missing(NOT_PUBLISHED, merge=True)
        line |= _measured_side(view, key, TABLE1, interval=False)
        table.lines.append(Line(line, f"Measured here, split {view.split}" if index == 0 else ""))
    return table


def table2(view: View, data: Published) -> Table:
    """Table 2: GenEval by task."""
    columns = _columns(TABLE2, [Column("model", "model", numeric=False), Column("nfe", "NFE")], [])
    caption = (
        "Table 2 of arXiv 2604.12322v1 (GenEval, overall is the mean of the six tasks) beside what was measured here on the world's six tasks of the same names. Spread: diversity of the "
        "images of one prompt relative to real ones, which GenEval does not see. For a measured row, `published` is the range over the paper's rows of its method at its NFE. "
        f"n: images."
    )
    table = Table("table2", "Table 2: GenEval by task", caption, columns, remark(view))
    measured_keys = [column.key for column in columns if column.group == "measured here"]
    full = _full_scale(view)
    method_of = {label(row): row["suite_methods"].replace("-", "_").split() for row in data["table1"]}
    for index, row in enumerate(data["table2"]):
        table.lines.append(Line(_published_line(row, row["nfe"], TABLE2, view, full, measured_keys), "Published" if index == 0 else ""))
    taken = {(slug(label(row)), int(row["nfe"])) for row in data["table2"] if row["nfe"]}
    for index, key in enumerate(key for key in view.keys if (slug(key[0]), key[1]) not in taken):
        same = [row for row in data["table2"] if row["nfe"] == str(key[1]) and _methods(view, key) in method_of.get(label(row), [])]
        line = {"model": Cell(cells.row_name(key, view)), "nfe": Cell(cells.nfe_text(key))}
        line |= {f"pub_{name}": _range(same, name) for name, *_ in TABLE2}
        table.lines.append(Line(line | _measured_side(view, key, TABLE2, interval=False), f"Measured here, split {view.split}" if index == 0 else ""))
    return table
