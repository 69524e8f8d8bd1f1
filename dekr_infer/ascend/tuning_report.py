"""Times of the sizes of several models -> one figure for each, a ranked table, and its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dekr_infer.data.coco import load_data_set
from dekr_infer.export.parity import Difference
from dekr_infer.geometry import PUBLISHED_SIZES, Size

SPLIT = "val2017"
# Of 80 pictures of COCO train2017, by `input_size_for`: what stands in for val2017 when no data set is named.
SAMPLE = {Size(512, 768): 41, Size(1024, 512): 1, Size(512, 1024): 21, Size(768, 512): 15, Size(512, 512): 2}
SAMPLE_SOURCE = "80 pictures of COCO train2017, counted once; --root DATA counts yours"


class Shares(NamedTuple):
    """How often each input size occurs, and in what."""

    counts: Mapping[Size, int]
    source: str

    def mean(self, values: Mapping[Size, float]) -> float:
        """The mean of a value per input size over all pictures."""
        return sum(values[input_size] * count for input_size, count in self.counts.items()) / sum(self.counts.values())

    def line(self) -> str:
        """For people: `512x768 51 %, ...`."""
        total = sum(self.counts.values())
        return ", ".join(
            f"{input_size} {100 * self.counts.get(input_size, 0) / total:.1f} %" for input_size in PUBLISHED_SIZES
        )


def shares_of(root: Path | None) -> Shares:
    """The input sizes of a data set's pictures; without one, of a sample of COCO.

    Raises:
        DekrError: the data set's annotation file is missing or damaged.
    """
    if root is None:
        return Shares(SAMPLE, SAMPLE_SOURCE)
    data = load_data_set(root, SPLIT)
    counts = Counter(PUBLISHED_SIZES.place(picture.size).input for picture in data.images)
    return Shares(counts, f"{len(data.images)} pictures of {data.annotation}")


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: its times and how its outputs compare with the CPU's, or why there are none.

    `milliseconds` are medians of one pass by input size. With `problem` it is not ranked, whether it has times or not.
    """

    variant: str
    milliseconds: Mapping[Size, float]
    differences: Sequence[Difference] = ()
    problem: str = ""

    @property
    def worst(self) -> Difference:
        """Of each output the difference that is the largest share of its values, over all input sizes; it has times."""
        heat = max(self.differences, key=lambda difference: difference.heat_share)
        offset = max(self.differences, key=lambda difference: difference.offset_share)
        return heat._replace(offset=offset.offset, largest_offset=offset.largest_offset)


def ranked(outcomes: Sequence[Outcome], shares: Shares) -> list[Outcome]:
    """Those without a problem, fastest first, then the others."""
    good = [outcome for outcome in outcomes if not outcome.problem]
    good.sort(key=lambda outcome: shares.mean(outcome.milliseconds))
    return good + [outcome for outcome in outcomes if outcome.problem]


def table(order: Sequence[Outcome], shares: Shares) -> Iterator[str]:
    """The lines of the table, in the order of `ranked`."""
    sizes = "".join(f"{input_size!s:>10}" for input_size in PUBLISHED_SIZES)
    yield f"    {'form':<9}{sizes}{'all':>10}{'passes/s':>10}   heatmap           offset (cells)"
    for number, outcome in enumerate(order, 1):
        place = "  - " if outcome.problem else f"{number:3d} "
        if outcome.milliseconds:
            mean = shares.mean(outcome.milliseconds)
            times = "".join(f"{outcome.milliseconds[input_size]:10.2f}" for input_size in PUBLISHED_SIZES)
            worst = outcome.worst
            apart = f"   {_apart(worst.heat, worst.largest_heat)}  {_apart(worst.offset, worst.largest_offset)}"
            yield f"{place}{outcome.variant:<9}{times}{mean:10.2f}{1000 / mean:10.2f}{apart}"
        if outcome.problem:
            yield f"{place}{outcome.variant:<9} {outcome.problem}"


def _apart(difference: float, largest: float) -> str:
    return f"{difference:.1e} of {largest:<5.3g}"


def as_json(order: Sequence[Outcome], shares: Shares) -> list[dict[str, Any]]:
    """The same, all figures in full, for machines."""
    return [
        {
            "variant": outcome.variant,
            "rank": None if outcome.problem else number,
            "problem": outcome.problem or None,
            "milliseconds": {str(input_size): value for input_size, value in outcome.milliseconds.items()},
            "mean_milliseconds": shares.mean(outcome.milliseconds) if outcome.milliseconds else None,
            "differences": {
                str(d.input_size): {key: value for key, value in d._asdict().items() if key != "input_size"}
                for d in outcome.differences
            },
        }
        for number, outcome in enumerate(order, 1)
    ]
