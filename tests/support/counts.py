"""What the suite did to the commands, counted for the line that pytest prints at its end."""

from __future__ import annotations

from collections import Counter

DONE: Counter[str] = Counter()


def summary() -> str:
    """The counts as one line."""
    return ", ".join(f"{number:,} {what}" for what, number in sorted(DONE.items()))
