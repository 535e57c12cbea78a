"""One row a line, one NFE a column: what rows that were sampled at many NFEs gain from more steps."""

from __future__ import annotations

from paper_tables import cells
from paper_tables.cells import missing, number, why_missing
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.stats import Summary
from paper_tables.tables_paper import remark
from paper_tables.view import Key, View

MANY = 5  # NFEs that make a sweep
# key, title, metric
SWEPT = (("overall", "GenEval ↑", "geneval/overall"), ("fid", "FID ↓", "fid"), ("spread", "coverage: spread ↑", "coverage/spread"))


def swept_rows(view: View) -> list[str]:
    """Trained rows with records of many NFEs, or that the profile wants at many."""
    return [row for row in view.rows if len({nfe for name, nfe in view.methods if name == row}) >= MANY]


def sweep_points(view: View, row: str, metric: str) -> list[tuple[int, Summary]]:
    """A row's numbers by NFE, all of one seed: a mean over seeds at some NFEs beside one seed at others is no curve."""
    seed = view.common_seed(row, metric)
    keys = [key for key in view.keys if key[0] == row and key[1]]
    return sorted((key[1], found) for key in keys if (found := view.get(key, metric, seed=seed)))


def sweep(view: View) -> Table | None:
    """The rows of `swept_rows` and the guided teacher; None where there is no such row."""
    rows = swept_rows(view)
    if not rows:
        return None
    nfes = sorted({nfe for name, nfe in view.keys if name in rows and nfe})
    columns = [Column("row", "row", numeric=False)]
    columns += [Column(f"{name}_{nfe}", str(nfe), title) for name, title, _ in SWEPT for nfe in nfes]
    columns += [Column("n", "n"), Column("seed", "seed")]
    caption = (
        f"Rows that are sampled at many NFEs, {view.split} set, one column per NFE, all of one seed. 95% intervals are in the CSV file and "
        "the figure. NFE counts steps; a guided step of the teacher runs the network twice."
    )
    panels = [(title, ["row", *(f"{name}_{nfe}" for nfe in nfes), "n", "seed"]) for name, title, _ in SWEPT]
    table = Table("sweep", "From one step to many", caption, columns, remark=remark(view), panels=panels)
    for row in [*rows, "teacher"]:
        line = {"row": Cell("teacher (guided)" if row == "teacher" else row, None, view.note(row))}
        for name, _, metric in SWEPT:
            known = dict(sweep_points(view, row, metric))
            for nfe in nfes:
                line[f"{name}_{nfe}"] = _cell(view, (row, nfe), known.get(nfe), metric)
        found = next((one for _, _, metric in SWEPT for _, one in sweep_points(view, row, metric)), None)
        seed = view.common_seed(row, "geneval/overall")
        why = why_missing(view, (row, nfes[0]), "geneval")
        line["n"] = Cell(str(found.n), Summary(found.n)) if found and found.n else missing(why)
        line["seed"] = Cell(str(seed), Summary(seed)) if seed is not None else missing(why)
        table.lines.append(Line(line))
    return table


def _cell(view: View, key: Key, found: Summary | None, metric: str) -> Cell:
    if found:
        return number(found, 1 if metric == "fid" else 2, interval=False)
    if key not in view.keys:
        return Cell(cells.NOT_APPLICABLE, None, "Does not apply: the profile does not name this NFE for this row.")
    return missing(why_missing(view, key, metric.split("/")[0]))
