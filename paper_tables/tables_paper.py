"""Tables 1 to 4 in the paper's shape: its published numbers and what was measured here, side by side. 5 to 7: `ablations.py`."""

from __future__ import annotations

import re

from paper_tables import cells
from paper_tables.published import GENEVAL_TASKS, Published, Row, label, slug
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.view import TASK_NAMES, Key, View

NEEDS_FULL_SCALE = (
    "Not run: needs the system's public weights, or training at that scale, the benchmark's own prompts and networks, and a GPU. "
    "Images made elsewhere in GenEval's folder layout fill the row when the profile lists them under “external” as "
    "row: sana-sprint-0.6b, nfe: 2 (the row's name in small letters and hyphens)."
)
NOT_PUBLISHED = "Does not apply: the paper has no such row."
PAPER_MACHINE = "A100"
SIDE = "measured here"
Columns = tuple[tuple[str, str, str, int | None], ...]
# the paper's column, head, metric of the records, decimals (None: three significant digits)
TABLE1: Columns = (
    ("throughput_samples_s", "images/s ↑", "speed/throughput_b10_sps", None),
    ("latency_s", "latency, s ↓", "speed/latency_b1_s", None),
    ("fid", "FID ↓", "fid", 2),
    ("clip", "CLIP ↑", "clip_score", 2),
    ("geneval", "GenEval ↑", "geneval/overall", 2),
)
TABLE3: Columns = tuple(
    (name, f"{name} ↑" if name == "overall" else name, f"dpg/{name}", 2)
    for name in ("global", "entity", "attribute", "relation", "other", "overall")
)
TABLE4: Columns = tuple(
    (name, f"{name} ↑" if name == "overall" else name, f"wise/{name}", 2)
    for name in ("cultural", "time", "space", "biology", "physics", "chemistry", "overall")
)
JUDGED = (TABLE3, TABLE4)
TABLE2: Columns = (
    *((column, TASK_NAMES[task], f"geneval/{task}", 2) for column, task in GENEVAL_TASKS.items()),
    ("overall", "overall ↑", "geneval/overall", 2),
)


def remark(view: View) -> str:
    """What holds for every table of this results folder: how the intervals came about, and what the rows cannot say."""
    words = (
        "95% intervals in brackets. Of one row's number with one seed: over prompts alone, so training noise is not in them; what compares "
    )
    words += "two rows holds it. With several: over seeds (Student's t) and prompts, joined; FID has them over seeds alone. "
    if view.largest and view.of_a_world:
        words += (
            f"Measured rows are the embedded world's: networks of up to {view.largest / 1e6:.2f}M parameters that draw small scenes of "
            "coloured shapes, scored by the world's own detector, FID and CLIP networks. Such a world can neither refute nor confirm a "
            "claim at 20B, and its FID and CLIP score are on another scale than the paper's."
        )
    return " ".join(filter(None, (view.origin_words, words.strip(), view.remarked_words)))


def _range(rows: list[Row], column: str) -> Cell:
    """The paper's values for one method: the value, or lowest to highest."""
    found = sorted((row[column] for row in rows if row[column]), key=float)
    if not found:
        return cells.missing(NOT_PUBLISHED, merge=True)
    return Cell(found[0] if found[0] == found[-1] else f"{found[0]}–{found[-1]}")


def nfe_of(row: Row) -> str:
    """A printed row's NFE, of its own column or of its name, `APEX 0.6B (1-NFE)`; '' where it is not printed."""
    match = re.search(r"\((\d+)-NFE\)", label(row))
    return row.get("nfe") or (match[1] if match else "")


def _measured(view: View, key: Key, columns: Columns) -> dict[str, Cell]:
    """The right-hand side of a line; only GenEval's overall shows its interval here, the world table and the CSV have all."""
    side = {f"our_{name}": cells.measured(view, key, metric, digits, metric == "geneval/overall") for name, _, metric, digits in columns}
    own = [metric for *_, metric, _ in reversed(columns)]  # from the overall on
    side |= cells.common_cells(view, key, "our_", interval=False, of=own if columns in JUDGED else cells.MAIN)
    return side | {"our_hardware": cells.hardware_cell(view, key)}


def _table(view: View, data: Published, name: str, title: str, caption: str, columns: Columns) -> Table:
    """The paper's rows, then the measured rows that no row of the paper stands for, each with both sides."""
    table1 = name == "table1"
    machine = [Column("pub_hardware", "hardware", "published", numeric=False)] if table1 else []
    size = [Column("parameters", "parameters")] if table1 else []
    heads = [Column("model", "model", numeric=False), Column("nfe", "NFE"), *size]
    heads += [Column(f"pub_{column}", head, "published") for column, head, *_ in columns] + machine
    heads += [Column(f"our_{column}", head, SIDE) for column, head, *_ in columns]
    heads += [*cells.common_columns(SIDE, "our_"), Column("our_hardware", "hardware", SIDE, numeric=False)]
    table = Table(name, title, caption, heads, remark=remark(view))

    here = {(slug(row), nfe): (row, nfe) for row, nfe in view.keys}
    # The paper's PCM is a model of its own; the suite's row pcm is its method on another teacher, and no stand-in.
    ours_alone = {slug(row) for row in view.rows if not view.images_only(row) and row == view.about(row, "method")}
    methods = {label(row): [slug(method) for method in row["suite_methods"].split()] for row in data["table1"]}
    rows, section = data[name], ""
    if table1:  # the paper prints NFE 2 above NFE 1
        rows = sorted(rows, key=lambda row: -int(row["nfe"]))
    for row in rows:
        nfe = nfe_of(row)
        line = {"model": Cell(label(row)), "nfe": Cell(nfe or cells.NOT_APPLICABLE)}
        line |= {f"pub_{column}": Cell(row[column] or cells.NOT_APPLICABLE) for column, *_ in columns}
        if table1:
            tuning = row["trainable_note"].split(" (")[0]
            note = f" ({tuning})" if "LoRA" in tuning and "LoRA" not in label(row) else ""
            line |= {"model": Cell(label(row) + note), "parameters": Cell(f"{row['params_b']}B"), "pub_hardware": Cell(PAPER_MACHINE)}
        key = here.pop((slug(label(row)), int(nfe)), None) if nfe and slug(label(row)) not in ours_alone else None
        ours = [column.key for column in heads if column.group == SIDE]
        line |= _measured(view, key, columns) if key else {column: cells.missing(NEEDS_FULL_SCALE, merge=True) for column in ours}
        heading = f"Published, NFE {nfe}" if table1 else "Published"
        table.lines.append(Line(line, heading if heading != section else ""))
        section = heading
    if columns in JUDGED:  # benchmarks of photographs: a row that has none of their numbers has no line
        here = {names: key for names, key in here.items() if any(view.get(key, metric) for _, _, metric, _ in columns)}
    there = [metric for *_, metric, _ in columns if not metric.startswith("speed/") and any(view.get(key, metric) for key in view.keys)]
    sets = " and ".join(dict.fromkeys(map(view.home, there))) or view.split
    for index, key in enumerate(here.values()):
        method = slug(view.info(key, "method") or key[0])
        same = [row for row in rows if nfe_of(row) == str(key[1]) and method in methods.get(label(row), [])]
        line = cells.name_cells(view, key, "model") | {f"pub_{column}": _range(same, column) for column, *_ in columns}
        if table1:
            line["parameters"] = cells.size_cells(view, key)["parameters"]
            line["pub_hardware"] = Cell(PAPER_MACHINE) if same else cells.missing(NOT_PUBLISHED, merge=True)
        table.lines.append(Line(line | _measured(view, key, columns), f"Measured here, {sets} set" if index == 0 else ""))
    return table


def published_words(view: View) -> str:
    words = "For a measured row, “published” is the range over the paper's rows of its method at its NFE. "
    if view.measures("coverage"):
        words += "Spread, precision and recall: whether the images of a prompt vary as real ones do, which GenEval does not see. "
    return words + "n: images per seed."


def table1(view: View, data: Published) -> Table:
    """Table 1: speed and quality at NFE 2 and NFE 1."""
    caption = (
        "Table 1 of arXiv 2604.12322v1 beside what was measured here. Throughput at batch 10, latency at batch 1, end to end. "
        + published_words(view)
    )
    return _table(view, data, "table1", "The paper's Table 1: speed and quality of few-step models", caption, TABLE1)


def table2(view: View, data: Published) -> Table:
    """Table 2: GenEval by task."""
    where = " on the world's six tasks of the same names" if view.of_a_world else ""
    caption = (
        f"Table 2 of arXiv 2604.12322v1 (GenEval; overall is the mean of the six tasks) beside what was measured here{where}. "
        + published_words(view)
    )
    return _table(view, data, "table2", "The paper's Table 2: GenEval by task", caption, TABLE2)


NEEDS_A_JUDGE = (
    "Its prompts ask for photographs and a large vision-language model judges them, so the embedded world has no number of it: rows appear "
    "here once `evaluators.{prefix}` has scored them (docs/evaluators/{prefix}.md). "
)


def table3(view: View, data: Published) -> Table:
    """Table 3: DPG-Bench by category."""
    caption = "Table 3 of arXiv 2604.12322v1 (DPG-Bench), digits as printed. " + NEEDS_A_JUDGE.format(prefix="dpg") + published_words(view)
    return _table(view, data, "table3", "The paper's Table 3: DPG-Bench", caption, TABLE3)


def table4(view: View, data: Published) -> Table:
    """Table 4: WISE by category."""
    caption = "Table 4 of arXiv 2604.12322v1 (WISE), digits as printed. " + NEEDS_A_JUDGE.format(prefix="wise") + published_words(view)
    return _table(view, data, "table4", "The paper's Table 4: WISE", caption, TABLE4)
