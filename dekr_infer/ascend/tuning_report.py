"""Rank variants by the times of their input sizes: one mean for each, a table, and its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dekr_infer.data.coco import load_data_set
from dekr_infer.export.parity import Difference
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size

SPLIT = "val2017"
# Of 80 images of COCO train2017: the frequencies that are used when no data set is named.
SAMPLE = {Size(512, 768): 41, Size(1024, 512): 1, Size(512, 1024): 21, Size(768, 512): 15, Size(512, 512): 2}
SAMPLE_SOURCE = "80 images of COCO train2017, counted once; --root DATA counts yours"


class Shares(NamedTuple):
    """How often each of the input sizes occurs, and in which images."""

    input_sizes: InputSizes
    counts: Mapping[Size, int]
    source: str

    def mean(self, values: Mapping[Size, float]) -> float:
        """Return the mean over all images of a value for each input size."""
        return sum(values[input_size] * count for input_size, count in self.counts.items()) / sum(self.counts.values())

    def line(self) -> str:
        """Return the shares as text: `512x768 51.2 %, ...`."""
        total = sum(self.counts.values())
        return ", ".join(
            f"{input_size} {100 * self.counts.get(input_size, 0) / total:.1f} %" for input_size in self.input_sizes
        )


def shares_of(root: Path | None, input_sizes: InputSizes = PUBLISHED_SIZES) -> Shares:
    """Return how often each input size occurs in a data set; by default, in a sample of COCO.

    Raises:
        DekrError: the data set's annotation file is missing or damaged.
    """
    if root is None:
        return Shares(input_sizes, SAMPLE, SAMPLE_SOURCE)
    data = load_data_set(root, SPLIT)
    counts = Counter(input_sizes.place(image.size).input for image in data.images)
    return Shares(input_sizes, counts, f"{len(data.images)} images of {data.annotation}")


@dataclass(frozen=True)
class Outcome:
    """The times of a variant and the differences of its outputs from the CPU's, or the reason why there are none.

    `milliseconds` are medians of one pass, by input size. With a `problem`, the variant is not ranked.
    """

    variant: str
    milliseconds: Mapping[Size, float]
    differences: Sequence[Difference] = ()
    problem: str = ""

    @property
    def worst(self) -> Difference:
        """For each output, the difference that is the largest share of its values, over all input sizes."""
        heat = max(self.differences, key=lambda difference: difference.heat_share)
        offset = max(self.differences, key=lambda difference: difference.offset_share)
        return heat._replace(offset=offset.offset, largest_offset=offset.largest_offset)


def ranked(outcomes: Sequence[Outcome], shares: Shares) -> list[Outcome]:
    """Return the variants without a problem, fastest first, then the others."""
    good = [outcome for outcome in outcomes if not outcome.problem]
    good.sort(key=lambda outcome: shares.mean(outcome.milliseconds))
    return good + [outcome for outcome in outcomes if outcome.problem]


def table(order: Sequence[Outcome], shares: Shares) -> Iterator[str]:
    """Yield the lines of the table, in the order of `ranked`."""
    sizes = "".join(f"{input_size!s:>10}" for input_size in shares.input_sizes)
    yield f"    {'variant':<9}{sizes}{'all':>10}{'passes/s':>10}   heatmap           offset (cells)"
    for number, outcome in enumerate(order, 1):
        place = "  - " if outcome.problem else f"{number:3d} "
        if outcome.milliseconds:
            mean = shares.mean(outcome.milliseconds)
            times = "".join(f"{outcome.milliseconds[input_size]:10.2f}" for input_size in shares.input_sizes)
            worst = outcome.worst
            apart = f"   {_apart(worst.heat, worst.largest_heat)}  {_apart(worst.offset, worst.largest_offset)}"
            yield f"{place}{outcome.variant:<9}{times}{mean:10.2f}{1000 / mean:10.2f}{apart}"
        if outcome.problem:
            yield f"{place}{outcome.variant:<9} {outcome.problem}"


def _apart(difference: float, largest: float) -> str:
    return f"{difference:.1e} of {largest:<5.3g}"


def as_json(order: Sequence[Outcome], shares: Shares) -> list[dict[str, Any]]:
    """Return the outcomes with all values in full, in the order of `ranked`."""
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
