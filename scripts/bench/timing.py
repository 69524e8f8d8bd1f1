"""Timing: several ways of doing the same work take turns, so that a change of the machine's pace affects all ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS, REFERENCE, UPSTREAM, LIMIT = "ours", "reference", "upstream", "limit"
Ways = dict[str, Callable[[], object]]


def alternate(
    ways: Ways, rounds: int, before: Callable[[], object] = lambda: None, per: int = 1
) -> dict[str, list[float]]:
    """Run every way once a round, in turn, after one round that is not timed.

    Args:
        ways: by name.
        rounds: that are timed.
        before: called before each run, outside the measured time.
        per: units of work in a run.
    Returns:
        The seconds per unit of each run, by way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):  # the first round loads libraries and allocates buffers
        for name, way in ways.items():
            before()
            started = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - started) / per)
    return {name: values[1:] for name, values in seconds.items()}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        stage: the work and what the times are per.
        seconds: of every round, by way: `ours`, `reference`, and perhaps `upstream` and `limit`.
        limit: the work that the limit is the time of.
        facts: further values for the JSON file.
    """

    stage: str
    seconds: Mapping[str, list[float]]
    limit: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def median(self, way: str) -> float | None:
        """Return the median seconds of a way; `None` when it was not run."""
        return statistics.median(self.seconds[way]) if way in self.seconds else None

    def ratio(self, way: str, to: str) -> float | None:
        """Return the median over the rounds of one way's time over another's; `None` when one was not run."""
        if way not in self.seconds or to not in self.seconds:
            return None
        return statistics.median(a / b for a, b in zip(self.seconds[way], self.seconds[to], strict=True))


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown: medians, and how many times faster ours is."""
    lines = [
        "| stage | ours | reference's way | | upstream's code | | the machine's limit | ours / limit |",
        "|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        ours, reference, upstream, limit = (_time(row.median(way)) for way in (OURS, REFERENCE, UPSTREAM, LIMIT))
        faster, faster_than_upstream = (_times(row.ratio(way, OURS), " x") for way in (REFERENCE, UPSTREAM))
        bound, of_limit = f"{limit}, {row.limit}" if limit else "", _times(row.ratio(OURS, LIMIT), "")
        cells = (row.stage, ours, reference, faster, upstream, faster_than_upstream, bound, of_limit)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"


def _times(ratio: float | None, unit: str) -> str:
    return "" if ratio is None else f"{ratio:.0f}{unit}" if ratio >= 20 else f"{ratio:.2f}{unit}"
