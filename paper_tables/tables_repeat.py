"""A run beside the committed one of the same profile: does doing it again give the same numbers?"""

from __future__ import annotations

import statistics
from dataclasses import replace

from paper_tables import cells, stats
from paper_tables.cells import number
from paper_tables.evidence import differences
from paper_tables.render import Cell, Column, Line, Table
from paper_tables.stats import ABOVE, APART, BELOW, Summary
from paper_tables.tables_paper import remark
from paper_tables.view import Key, View

# metric, heading, whether its difference is judged: it has an interval
METRICS = (
    ("geneval/overall", "GenEval ↑", True),
    ("coverage/recall", "coverage recall ↑", True),
    ("clip_score", "CLIP ↑", True),
    ("fid", "FID ↓", False),
)
SAME, OTHER = "the same", "other settings"


class Beside:
    """Results and what is committed of their profile.

    Attributes:
        here, there: both; of a (row, NFE) that has seeds in common, these seeds alone.
        keys: every (row, NFE) that both have a number of.
    """

    def __init__(self, view: View, committed: View) -> None:
        self.view, self.committed = view, committed
        seeds = [_seeds(side) for side in (view, committed)]
        common = {key: mine & theirs for key, mine in seeds[0].items() if (theirs := seeds[1].get(key))}
        self.here, self.there = (
            View([one for one in side.found if one.record.seed in (common.get(one.key) or {one.record.seed})]) for side in (view, committed)
        )
        self.keys = [key for key in view.keys if any(self.here.get(key, metric) and self.there.get(key, metric) for metric, *_ in METRICS)]

    def other_settings(self, row: str) -> str:
        """What the two were trained with differently; '' where nothing, or there is no record."""
        if not (self.view.made.get(row) and self.committed.made.get(row)):
            return ""
        here, there = (side.made[row][0] for side in (self.view, self.committed))
        run = there.get("run") or {}
        changed = differences(here, {**run, "params": {**(run.get("params") or {}), **(there.get("params") or {})}}) if run else []
        return "; ".join(f"{key}: here {ours}, committed {theirs}" for key, ours, theirs in sorted(changed))

    def difference(self, key: Key, metric: str) -> Summary | None:
        """Here minus committed. None: not in both.

        Of a trained row the interval holds training noise: that of the committed row's own seeds, else the largest of any row.
        """
        found = self.here.bare_difference(key, key, metric, of=self.there)
        if found is None or key not in self.view.methods or self.view.images_only(key[0]):
            return found
        own = self.committed.by_seed(key, metric)
        several = len(own) >= 3
        noise = statistics.stdev(own) if several else self.committed.training_noise(metric, key[1])
        noises = [noise if side.get(key, metric).seeds == 1 else 0.0 for side in (self.here, self.there)]
        return stats.with_noise(found, noises, quantile=stats.t_quantile(len(own)) if several else 1.96)


def beside(view: View) -> Beside | None:
    """None without a committed run of the profile, or where the two share nothing."""
    found = Beside(view, view.committed) if view.committed else None
    return found if found and found.keys else None


def _seeds(view: View) -> dict[Key, set[int | None]]:
    found: dict[Key, set[int | None]] = {}
    for one in view.found:
        found.setdefault(one.key, set()).add(one.record.seed)
    return found


def reading(found: Summary) -> str:
    """Of a difference, in the words of every comparison, or that not a digit differs; '' where it has no interval."""
    return SAME if found.value == 0 else stats.reading(found)


def repeated(view: View) -> Table | None:
    """Every (row, NFE) of both; None where there is none."""
    both = beside(view)
    if not both:
        return None
    columns = [Column("row", "row", numeric=False), Column("nfe", "NFE")]
    for metric, head, judged in METRICS:
        columns += [Column(f"{metric} here", "here", head), Column(f"{metric} committed", "committed", head)]
        if judged:
            columns += [Column(f"{metric} difference", "difference", head), Column(f"{metric} reading", "reading", head, numeric=False)]
    columns += [Column("seeds", "here", "seeds"), Column("committed", "committed", "seeds"), Column("note", "note", numeric=False)]
    caption = (
        "What was run here beside what is committed of the same profile in results/reference, over the seeds that both have (all seeds, "
        "where they have none in common). Difference: here minus committed, with its 95% interval over prompts; of a trained row it holds "
        "training noise too: of its own committed seeds where there are three, else the largest that any row shows. Reading: “the same”, "
        f"every digit; “{APART}”, the interval holds zero; “{ABOVE}” and “{BELOW}”, it does not, as of one cell in twenty by chance. "
        "One seed gives one result on one kind of processor; on another, training ends elsewhere, as far off as with another seed."
    )
    table = Table("repeated", "This run and the committed one", caption, columns, remark=remark(view))
    counts: dict[str, int] = {}
    family = None
    for key in both.keys:
        line = cells.name_cells(view, key)
        if (theirs := both.committed.note(*key)) and theirs != line["row"].note:
            line["row"] = replace(line["row"], note=f"{line['row'].note} Committed: {theirs}".strip())
        other = both.other_settings(key[0])
        for metric, _, judged in METRICS:
            found = both.difference(key, metric)
            if found is None:
                continue
            for name, side in (("here", both.here), ("committed", both.there)):
                line[f"{metric} {name}"] = number(side.get(key, metric), 2, interval=False)
            if judged:
                words = OTHER if other else reading(found)
                line |= {f"{metric} difference": number(found, 3, interval=found.value != 0), f"{metric} reading": Cell(words)}
                if metric == METRICS[0][0]:
                    counts[words] = counts.get(words, 0) + 1
        for name, side in (("seeds", both.here), ("committed", both.there)):
            count = max(one.seeds for metric, *_ in METRICS if (one := side.get(key, metric)))
            line[name] = Cell(str(count), Summary(count))
        line["note"] = Cell(OTHER, None, f"{key[0]} was trained with other settings: {other}.") if other else Cell("")
        heading = view.families.get(key[0], "references and teacher")
        table.lines.append(Line(line, heading if heading != family else ""))
        family = heading
    words = ", ".join(f"{counts[name]} {name}" for name in (SAME, APART, ABOVE, BELOW, OTHER) if name in counts)
    if words:
        table.lines.append(Line({"row": Cell(f"GenEval, {sum(counts.values())} cells: {words}")}, "together"))
    return table
