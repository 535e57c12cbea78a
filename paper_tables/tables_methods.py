"""The methods side by side at each NFE: everything in the shape of the paper's Tables 1 and 2, and each against `apex` prompt by prompt."""

from __future__ import annotations

from typing import Any

from apex.data import overlap
from paper_tables import cells, stats
from paper_tables.cells import COVERAGE, measured, missing, number, why_missing
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.tables_paper import remark
from paper_tables.view import REFERENCE_NAMES, TASK_NAMES, TASKS, Key, View

# key, head, group, metric, decimals (None: three significant digits), better: 1 high, -1 low, 0 not judged
SCORES = (
    ("throughput", "images/s ↑", "speed", "speed/throughput_b10_sps", None, 0),
    ("latency", "latency, s ↓", "speed", "speed/latency_b1_s", None, 0),
    ("fid", "FID ↓", "", "fid", 2, -1),
    ("clip_score", "CLIP ↑", "", "clip_score", 2, 1),
    ("overall", "overall ↑", "GenEval", "geneval/overall", 2, 1),
    *((task, TASK_NAMES[task], "GenEval", f"geneval/{task}", 2, 1) for task in TASKS),
    *((name, f"{name} ↑", "coverage", f"coverage/{name}", 2, 1) for name in COVERAGE),
)
FEW = 6  # rows that a caption names
SAME_BUDGET = 1.05  # the most that the dearest run spent of what the cheapest did: a run ends with the step that reaches its budget
BEHIND = [*COVERAGE, "n", "seeds", "note"]
PANELS = [
    (
        "(a) Speed, size and quality",
        ["row", "nfe", "citation", "tuning", "throughput", "latency", "parameters", "trainable", "fid", "clip_score", "overall", *BEHIND],
    ),
    ("(b) GenEval by task", ["row", "nfe", *TASKS, "overall", *BEHIND]),
]


def _line(view: View, key: Key) -> dict[str, Cell]:
    line = cells.name_cells(view, key)
    for name, _, _, metric, decimals, _ in SCORES:
        line[name] = measured(view, key, metric, decimals, interval=not metric.startswith("speed/"))
    behind = cells.common_cells(view, key)
    line |= cells.size_cells(view, key) | {"n": behind["n"], "seeds": cells.seeds_cell(view, key)}
    if key in view.methods:
        line |= {"citation": Cell(cells.citation_words(view, key[0])), "tuning": Cell(cells.tuning_words(view, key[0]))}
        line["note"] = cells.note_cell(view, key[0])
    return line


def best_of(view: View, keys: list[Key], metric: str, better: int) -> tuple[Key | None, str]:
    """(the best of `keys`, what to say of it): it is named only where the interval of its difference from the second leaves out zero."""
    known = sorted((key for key in keys if view.get(key, metric)), key=lambda key: -better * view.get(key, metric).value)
    if len(known) < 2:
        return None, ""
    found = view.difference(known[0], known[1], metric)
    read = stats.reading(found)
    if not read:
        return None, "no interval"
    return (known[0], known[0][0]) if read == (stats.ABOVE if better > 0 else stats.BELOW) else (None, stats.APART)


def _block(view: View, nfe: int) -> list[Line]:
    """Every method at one NFE by family, the teacher at that NFE, and a last line that names the best of each column."""
    lines: list[Line] = []
    for family, keys in view.grouped(nfe):
        lines += [Line(_line(view, key), f"NFE {nfe}: {family}" if index == 0 else "") for index, key in enumerate(keys)]
    methods = [key for _, keys in view.grouped(nfe) for key in keys]
    ranked = [key for key in methods if not view.images_only(key[0])]  # other training, other budget
    by_key = dict(zip(methods, lines, strict=True))
    last: dict[str, Cell] = {"row": Cell(f"best at NFE {nfe}"), "nfe": Cell(str(nfe))}
    for name, _, _, metric, _, better in SCORES:
        key, words = best_of(view, ranked, metric, better) if better else (None, "")
        last[name] = Cell(words)
        if key:
            cell = by_key[key].cells[name]
            by_key[key].cells[name] = Cell(cell.text, cell.summary, cell.note, strong=True)
    if ("teacher", nfe) in view.keys and view.evaluators(("teacher", nfe)):
        lines.append(Line(_line(view, ("teacher", nfe)), f"NFE {nfe}: the undistilled teacher"))
    if any(cell.text for name, cell in last.items() if name not in ("row", "nfe")):
        known = [key for key in ranked if view.evaluators(key)]
        lines.append(Line(last, f"NFE {nfe}: the best of {len(known)} rows measured, where the interval parts it from the second"))
    return lines


PUBLISHED = "Published: stated elsewhere, with other weights, data and judges; no comparison with the lines above"


def _published(view: View) -> list[Line]:
    """The numbers that texts state, a line per row and NFE. Nothing else of the tables knows of them."""
    lines: dict[tuple[str, int], Line] = {}
    beside: dict[tuple[str, int], list[str]] = {}
    published = view.expected.published if view.expected else ()
    for one in published:
        key = (one.row, one.nfe)
        if key not in lines:
            name = one.row if "published" in one.row else f"{one.row} (published)"
            words = f"Published, not measured here: {one.source}" + (f"; {one.setting}" if one.setting else "") + "."
            blank = {score[0]: Cell(cells.NOT_APPLICABLE) for score in SCORES}
            blank |= {name: Cell(cells.NOT_APPLICABLE) for name in ("tuning", "parameters", "trainable", "n", "seeds")}
            names = {"row": Cell(name, None, words), "nfe": Cell(str(one.nfe) if one.nfe else cells.NOT_APPLICABLE)}
            lines[key] = Line(blank | names | {"citation": Cell(one.source)}, "" if lines else PUBLISHED)
        column = next((score[0] for score in SCORES if score[3] == one.metric), "")
        if column:
            lines[key].cells[column] = Cell(f"{one.value:g}", stats.Summary(one.value))
        else:
            beside.setdefault(key, []).append(f"{one.metric} {one.value:g}")
        settings = [other.setting for other in published if (other.row, other.nfe) == key and other.setting]
        lines[key].cells["note"] = Cell("; ".join([*dict.fromkeys(settings), *beside.get(key, [])]))
    return list(lines.values())


def _elsewhere(view: View) -> list[Line]:
    """Rows of images at NFEs at which nothing else is compared."""
    stock = view.stock_teachers
    keys = [key for key in view.methods if view.images_only(key[0]) and key[1] not in view.compared and key not in stock]
    return [Line(_line(view, key), "Images from elsewhere, at other NFEs" if index == 0 else "") for index, key in enumerate(keys)]


def seen_in_training(view: View) -> str:
    """What the rows' training captions share with the prompts, of the row where it is most, and which trained rows do not record it;
    empty where no row was trained."""
    most: dict[str, dict[str, Any]] = {}
    trained, unknown = [row for row in view.rows if view.trained(row)], []
    for row in trained:
        known = view.prompts_seen(row)
        if not all(known):
            unknown.append(row)
        for name, found in (item for one in known for item in one.items()):
            most[name] = max(most.get(name, found), found, key=lambda one: (one["prompts_seen"], one["samples_alike"]))
    words = [overlap.words(*one) for one in sorted(most.items())]
    if unknown:
        count = f"{len(unknown)} of {len(trained)} rows"
        words.append(f"not recorded of {count if len(unknown) > FEW else ', '.join(unknown)}" if most else "not recorded")
    return f"Prompts in training: {'; '.join(words)}." if words else ""


def budget_words(view: View) -> str:
    """What the trained rows spent, by their records; '' where none was trained."""
    spent = view.budgets
    if not spent:
        return ""
    lowest, highest = (f"{value:,.0f}" for value in (spent[0], spent[-1]))
    return f"{lowest} forward passes of the teacher" if lowest == highest else f"{lowest} to {highest} forward passes of the teacher"


def comparison(view: View) -> Table:
    """Every method by family, at each NFE."""
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE")]
    columns += [Column("citation", "from", numeric=False), Column("tuning", "tuning", numeric=False)]
    columns += [Column(name, head, group) for name, head, group, *_ in SCORES[:2]]
    columns += [Column("parameters", "parameters", "network"), Column("trainable", "trainable", "network")]
    columns += [Column(name, head, group) for name, head, group, *_ in SCORES[2:]]
    columns += [Column("n", "n"), Column("seeds", "seeds"), Column("note", "note", numeric=False)]
    spent, words = view.budgets, budget_words(view)
    alike = not spent or spent[-1] <= SAME_BUDGET * spent[0]
    budget = f" {'at one training budget' if alike else 'at different training budgets'}{f' ({words}, as recorded)' if words else ''}"
    caption = (
        f"Every method from the same teacher{budget}, prompts of the {view.split} set, by family and NFE. Bold: the "
        "best of its column and NFE, only where the 95% interval of its difference from the second leaves out zero (GenEval prompt by "
        "prompt; FID, CLIP and coverage take the two as independent; of a row with one seed it holds the training noise of those with "
        "three); no correction for the number of rows. Latency at batch 1, "
        "throughput at batch 10. n: images per seed."
    )
    said = f"{remark(view)} {seen_in_training(view)}".strip()
    table = Table("comparison", "All methods", caption, columns, remark=said, panels=PANELS)
    levels = [key for key in view.keys if key[0] in REFERENCE_NAMES or (key[0] == "teacher" and key[1] >= view.teacher[1])]
    for index, key in enumerate([*levels, *view.stock_teachers]):
        table.lines.append(Line(_line(view, key), "Levels: the ceiling, the floors, the teacher" if index == 0 else ""))
    for nfe in view.compared:
        table.lines += _block(view, nfe)
    table.lines += [*_elsewhere(view), *_published(view)]
    return table


PAIRS = (("", "geneval/overall", None), ("unseen_", "geneval/overall", "unseen"))


def _against(view: View, key: Key, other: Key) -> dict[str, Cell]:
    line = cells.name_cells(view, key)
    for prefix, metric, split in PAIRS:
        line[f"{prefix}value"] = _plain(view, key, metric, split)
        line[f"{prefix}baseline"] = _plain(view, other, metric, split)
        found = view.difference(key, other, metric, split)
        if found is None:
            absent = f"{prefix}value" if view.get(key, metric, split) is None else f"{prefix}baseline"
            line[f"{prefix}difference"] = missing(line[absent].note)
            line[f"{prefix}verdict"] = Cell("")
            continue
        cell = number(found, 3)
        note = "" if found.interval == stats.PAIRED else "Not compared prompt by prompt: the records lack the same prompts."
        line[f"{prefix}difference"] = Cell(cell.text, cell.summary, note)
        line[f"{prefix}verdict"] = Cell(stats.reading(found))
    behind = view.difference(key, other, "geneval/overall")
    line["n"] = Cell(str(behind.n), stats.Summary(behind.n)) if behind and behind.n else missing(line["difference"].note)
    line["seeds"] = Cell(str(behind.seeds), stats.Summary(behind.seeds)) if behind else missing(line["difference"].note)
    return line | {"note": cells.note_cell(view, key[0])}


def _plain(view: View, key: Key, metric: str, split: str | None) -> Cell:
    found = view.get(key, metric, split)
    if found:
        return number(found, 2, interval=False)
    if key[0] == view.baseline and key not in view.methods:
        return missing(f"Does not apply: {view.baseline} is not sampled at this NFE.")
    return missing(cells.TEST_ALONE if split and view.images_only(key[0]) else why_missing(view, key, "geneval"))


def _noise(view: View) -> str:
    """How much rows with three seeds differ over them, at the lowest NFE."""
    nfe = view.compared[0] if view.compared else 0
    found = view.training_noise("geneval/overall", nfe)
    if found is None:
        return " (here none has, so the interval lacks it)"
    return f" (a standard deviation of up to {found:.2g} over the seeds of a row at NFE {nfe})"


def paired(view: View) -> Table:
    """Every method against the view's baseline at the same NFE."""
    columns, base = [Column("row", "row", numeric=False), Column("nfe", "NFE")], view.baseline
    for prefix, group in (("", "GenEval"), ("unseen_", "GenEval, unseen combinations")):
        columns += [Column(f"{prefix}value", "row", group), Column(f"{prefix}baseline", base, group)]
        columns += [Column(f"{prefix}difference", f"row − {base}", group), Column(f"{prefix}verdict", "verdict", group, numeric=False)]
    columns += [Column("n", "n"), Column("seeds", "seeds"), Column("note", "note", numeric=False)]
    caption = (
        f"Each method against {base} at the same NFE: the difference of GenEval over the same prompts ({view.split} set), with the 95% "
        "interval of a paired bootstrap over prompts within task, joined with Student's interval over seeds and, where a row has one "
        f"seed, with the training noise of the rows that have three{_noise(view)}. “{stats.ABOVE}”: the row is above "
        f"{base}; “{stats.BELOW}”: it is below; “{stats.APART}”: the interval holds zero. The claims' verdicts follow from the same "
        "intervals. n: images per seed; seeds: the fewer of the two."
    )
    table = Table("paired", f"Every method against {base}", caption, columns, remark=remark(view))
    for nfe in sorted({*view.compared, *(nfe for row, nfe in view.methods if view.images_only(row))}):
        lines, counts = [], dict.fromkeys((stats.ABOVE, stats.APART, stats.BELOW), 0)
        for family, keys in view.grouped(nfe):
            others = [key for key in keys if key[0] != view.baseline]
            for index, key in enumerate(others):
                line = _against(view, key, (view.baseline, nfe))
                lines.append(Line(line, f"NFE {nfe}: {family}" if index == 0 else ""))
                if (text := line["verdict"].text) in counts and not view.images_only(key[0]):
                    counts[text] += 1
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        if lines and any(counts.values()):
            lines.append(Line({"row": Cell(f"all trained rows: {words}"), "nfe": Cell(str(nfe))}, f"NFE {nfe}: together"))
        table.lines += lines
    return table
