"""Whether training was stable: how far each run came, its losses, gradients and logits, and whether its pictures rise above the floor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from paper_tables import cells, stats
from paper_tables.cells import missing, number, plain
from paper_tables.logs import Log
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.stats import Summary
from paper_tables.tables_paper import remark
from paper_tables.view import View

FLOOR = ("shuffled", 0)  # renders of another prompt: what knows nothing of its prompt scores this
PART = 10  # beginning and end are a tenth of the log each
NO_LOGITS = "Does not apply: the method logs no discriminator."
NO_CLIP = "Does not apply: the run's record names no clip."
NO_FLOOR = "The row shuffled has no record to compare with."


def _ends(logs: Iterable[Log], name: str) -> tuple[float | None, float | None]:
    """The mean of a column's first and last tenth, averaged over the logs that have it."""
    found = [log.known(name) for log in logs]
    found = [values for values in found if len(values)]
    if not found:
        return None, None
    size = [max(1, len(values) // PART) for values in found]
    firsts = [values[:count].mean() for values, count in zip(found, size, strict=True)]
    lasts = [values[-count:].mean() for values, count in zip(found, size, strict=True)]
    return float(np.mean(firsts)), float(np.mean(lasts))


def outcome(view: View, row: str) -> Cell:
    """ "to its end", or when it diverged."""
    stopped = cells.stopped_cell(view, row)
    return stopped if stopped.text else Cell("to its end")


def _row(view: View, row: str, nfe: int) -> dict[str, Cell]:
    line = {"row": Cell(row, None, view.note(row)), "tuning": Cell(cells.tuning_words(view, row))}
    key = next(key for key in view.methods if key[0] == row)
    logs = list(view.logs.get(row, {}).values())
    ran = bool(logs or row in view.made or any(view.evaluators(one) for one in view.methods if one[0] == row))
    why = cells.NO_NETWORK if view.images_only(row) else cells.NO_LOG if ran else cells.why_missing(view, key, "geneval")
    trained = ran and not view.images_only(row)
    line["outcome"] = outcome(view, row) if trained else missing(why)
    spent, budget = view.cost(row, "forward_equivalents"), view.setting(row, "budget", "forward_equivalents")
    line["spent"] = plain(100 * spent / budget if spent and budget else None, cells.NO_RECORD if trained else why, 0)
    line["bad"] = plain(sum(sum(log.bad.values()) for log in logs) if logs else None, why, 0)
    for name, value in zip(("loss_first", "loss_last"), _ends(logs, "loss"), strict=True):
        line[name] = plain(value, why)
    norms = np.concatenate([log.known("grad_norm") for log in logs]) if logs else np.zeros(0)
    line["norm"] = plain(float(np.median(norms)) if len(norms) else None, why)
    line["norm_most"] = plain(float(norms.max()) if len(norms) else None, why)
    clip = view.setting(row, "train", "max_grad_norm")
    share = 100 * float((norms > clip).mean()) if len(norms) and clip else None
    line["clipped"] = plain(share, why if not logs or not trained else NO_CLIP, 0)
    for name in ("d_real", "d_fake"):
        line[name] = plain(_ends(logs, name)[1], why if not logs or not trained else NO_LOGITS, 2)
    line["seeds"] = Cell(str(len(logs)), Summary(len(logs))) if logs else missing(why)
    place = (row, nfe)
    for name, metric in (("overall", "geneval/overall"), ("spread", "coverage/spread")):
        found = view.get(place, metric)
        absent = (
            cells.OTHER_NFE if view.images_only(row) and place not in view.keys else cells.why_missing(view, place, metric.split("/")[0])
        )
        line[name] = number(found) if found else missing(absent)
    against = view.difference(place, FLOOR, "geneval/overall") if view.get(place, "geneval/overall") else None
    if against:
        line["floor"] = Cell(stats.reading(against))
    else:
        line["floor"] = missing(NO_FLOOR if view.get(place, "geneval/overall") else line["overall"].note)
    return line


def stability(view: View) -> Table:
    """A line per row, by family: a method that diverges or collapses is a line like the others."""
    nfe = view.compared[0] if view.compared else 1
    columns = [Column("row", "row", numeric=False), Column("tuning", "tuning", numeric=False)]
    columns += [Column("outcome", "outcome", "run", numeric=False), Column("spent", "budget spent, %", "run")]
    columns += [Column("bad", "nan or inf logged", "run"), Column("seeds", "seeds", "run")]
    columns += [Column("loss_first", "first tenth", "loss"), Column("loss_last", "last tenth", "loss")]
    columns += [Column("norm", "median", "gradient norm"), Column("norm_most", "largest", "gradient norm")]
    columns += [Column("clipped", "clipped, %", "gradient norm")]
    columns += [Column("d_real", "real", "discriminator, end"), Column("d_fake", "fake", "discriminator, end")]
    columns += [Column("overall", "GenEval ↑", f"pictures, NFE {nfe}")]
    columns += [Column("spread", "spread ↑", f"pictures, NFE {nfe}"), Column("floor", "floor", f"pictures, NFE {nfe}", numeric=False)]
    caption = (
        "Whether a method trains for its whole budget, and what its pictures are worth then. Outcome: a run whose loss or gradient is "
        "no finite number, or whose loss explodes, stops there, and its last good state is what is scored. The student's loss, means over "
        "seeds; losses of two methods do not compare. Gradient norms of the student before clipping, over the logged steps of all seeds; "
        "clipped: the share above the run's bound. Discriminator: mean logits in the last tenth. Floor: GenEval against that of renders "
        f"of another prompt, by the 95% interval of the difference; a generator that is {stats.BELOW} it or {stats.APART} from it has "
        "collapsed or never learned, though its run may have come to its end. A low spread is a generator that draws one picture per "
        "prompt."
    )
    table = Table("stability", "Stability of training", caption, columns, remark=remark(view))
    section = ""
    for row in view.rows:
        family = view.families[row]
        table.lines.append(Line(_row(view, row, nfe), family if family != section else ""))
        section = family
    return table
