"""Timing: several ways of doing the same work take turns, so that a change of the machine's pace affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS, REFERENCE, UPSTREAM, LIMIT = "ours", "reference", "upstream", "limit"
Ways = Mapping[str, Callable[[], object]]


def alternate(
    ways: Ways, rounds: int, before: Callable[[], object] = lambda: None, per: int = 1
) -> dict[str, list[float]]:
    """Run every way once a round, in turn, after one round that is not timed.

    Args:
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
        stage, unit: the work, and what the times are per.
        seconds: per unit, of every round, by way: `ours`, `reference`, and perhaps `upstream` and `limit`.
        limit: the work that the limit is the time of.
        facts: further values for the JSON file.
    """

    stage: str
    unit: str
    seconds: Mapping[str, list[float]]
    limit: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def median(self, way: str) -> float | None:
        """Return the median seconds per unit; `None` when that way was not run."""
        return statistics.median(self.seconds[way]) if way in self.seconds else None

    def ratio(self, way: str, to: str) -> float | None:
        """Return the median over the rounds of one way's time over another's; `None` when one was not run."""
        if way not in self.seconds or to not in self.seconds:
            return None
        return statistics.median(a / b for a, b in zip(self.seconds[way], self.seconds[to], strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        return {
            "stage": self.stage,
            "unit": self.unit,
            "median_seconds": {way: self.median(way) for way in self.seconds},
            "rounds_seconds": dict(self.seconds),
            "faster_than_reference": self.ratio(REFERENCE, OURS),
            "faster_than_upstream": self.ratio(UPSTREAM, OURS),
            "of_limit": self.ratio(OURS, LIMIT),
            "limit": self.limit,
            **self.facts,
        }


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown: medians, and how many times faster ours is."""
    lines = [
        "| stage | ours | reference's way | | upstream's code | | the machine's limit | ours / limit |",
        "|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        limit = _milliseconds(row.median(LIMIT))
        cells = [
            f"{row.stage}, {row.unit}",
            _milliseconds(row.median(OURS)),
            _milliseconds(row.median(REFERENCE)),
            _times(row.ratio(REFERENCE, OURS), " x"),
            _milliseconds(row.median(UPSTREAM)),
            _times(row.ratio(UPSTREAM, OURS), " x"),
            f"{limit}, {row.limit}" if limit else "",
            _times(row.ratio(OURS, LIMIT), ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"


def _times(ratio: float | None, unit: str) -> str:
    return "" if ratio is None else f"{ratio:.0f}{unit}" if ratio >= 20 else f"{ratio:.2f}{unit}"
