"""Intervals: of one record, over seeds, of a ratio."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantile of Student's t for 1, 2, ... degrees of freedom.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
              2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
NORMAL_QUANTILE = 1.960


@dataclass(frozen=True)
class Summary:
    """A number for a table: its 95% interval (None: none known), images or prompts behind it, seeds, and how the interval came about."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    seeds: int
    how: str  # "record": the interval that the record states; "t": over seeds; "": none

    @property
    def error(self) -> float | None:
        """Standard error that the interval stands for."""
        return None if self.low is None or self.high is None else (self.high - self.low) / (2 * NORMAL_QUANTILE)


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t; beyond 30 degrees of freedom the value at 30, which is the wider."""
    return T_QUANTILE[min(degrees, len(T_QUANTILE)) - 1]


def over_seeds(
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    counts: Sequence[int | None],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Summary:
    """One seed: the record's own interval. Several: the mean and the t-interval over seeds, cut at `bounds`.

    Args:
        values, lows, highs, counts: one entry per seed; `counts` is the n of each.
        bounds: the range that the quantity cannot leave.
    """
    known = [count for count in counts if count is not None]
    n = min(known) if known else None
    if len(values) == 1:
        has = lows[0] is not None and highs[0] is not None
        return Summary(values[0], lows[0], highs[0], n, 1, "record" if has else "")
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Summary(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), n, len(values), "t")


def ratio(top: Summary, bottom: Summary) -> Summary | None:
    """top/bottom with its 95% interval by the delta method, the two taken as independent.

    Both are scored on the same prompts, so their errors agree in part and the true interval is narrower. None where the
    denominator is zero.
    """
    if bottom.value == 0:
        return None
    value = top.value / bottom.value
    n = min((count for count in (top.n, bottom.n) if count is not None), default=None)
    if top.error is None or bottom.error is None:
        return Summary(value, None, None, n, top.seeds, "")
    error = math.hypot(top.error / bottom.value, value * bottom.error / bottom.value)
    return Summary(value, value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error, n, top.seeds, "ratio")
