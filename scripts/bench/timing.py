"""Timing: several ways of doing the same work in turn, so that a change of the machine's pace meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS, REFERENCE, UPSTREAM, LIMIT = "ours", "reference", "upstream", "limit"
Ways = Mapping[str, Callable[[], object]]


def alternate(ways: Ways, rounds: int, between: Callable[[], object] = lambda: None) -> dict[str, list[float]]:
    """Run every way once a round, in turn.

    Args:
        between: called before each of them, outside the time.
    Returns:
        The seconds of each run, by way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            between()
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        stage: what was done. unit: what the times are of.
        seconds: per unit, of every round, by way: `ours`, `reference`, and perhaps `upstream` and `limit`.
        limit: what the limit is the time of.
        allowed: what `of_limit` may be at most, and `faster` at least, by the project's design.
    """

    stage: str
    unit: str
    seconds: Mapping[str, list[float]]
    limit: str = ""
    most_of_limit: float | None = None
    least_faster: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def median(self, way: str) -> float | None:
        """The median seconds per unit; `None` when that way was not run."""
        return statistics.median(self.seconds[way]) if self.seconds.get(way) else None

    def ratio(self, way: str, to: str) -> float | None:
        """The median over the rounds of one way's time over another's."""
        pairs = list(zip(self.seconds.get(way, ()), self.seconds.get(to, ()), strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "stage": self.stage,
            "unit": self.unit,
            "median_seconds": {way: self.median(way) for way in self.seconds},
            "rounds_seconds": {way: list(values) for way, values in self.seconds.items()},
            "faster_than_reference": self.ratio(REFERENCE, OURS),
            "faster_than_upstream": self.ratio(UPSTREAM, OURS),
            "of_limit": self.ratio(OURS, LIMIT),
            "limit": self.limit,
            "most_of_limit": self.most_of_limit,
            "least_faster": self.least_faster,
            **self.facts,
        }


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown: medians, and how many times faster ours is."""
    lines = [
        "| stage | ours | reference's way | | upstream's code | | the machine's limit | ours / limit |",
        "|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        limit = row.median(LIMIT)
        cells = [
            f"{row.stage}, {row.unit}",
            _milliseconds(row.median(OURS)),
            _milliseconds(row.median(REFERENCE)),
            _times(row.ratio(REFERENCE, OURS), "x"),
            _milliseconds(row.median(UPSTREAM)),
            _times(row.ratio(UPSTREAM, OURS), "x"),
            f"{_milliseconds(limit)}, {row.limit}" if limit is not None else "",
            _times(row.ratio(OURS, LIMIT), ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"


def _times(ratio: float | None, unit: str) -> str:
    return "" if ratio is None else f"{ratio:.0f} {unit}".rstrip() if ratio >= 20 else f"{ratio:.2f} {unit}".rstrip()
