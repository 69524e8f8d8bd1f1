"""--deform gather: the adaptive blocks of all joints in plain operators, without a deformable convolution.

Experimental: it has never run on an NPU.

Each map becomes a table with one row per cell that holds this cell and its right, lower and lower right neighbour, so
one Gather fetches all corners of a sample. A corner beyond the map counts as 0: there is a border of zeros, and
positions are clamped to it. One matrix product then multiplies the weighted corners by the kernel.

The graph holds no size and computes none from a shape: a cell's position is found by counting ones. Distances are split
into whole and fraction before the cell's position is added, because accelerators compute in float16, which cannot hold
a fraction together with a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekr_infer.export.fold import TAPS, FoldedAdaptBlock, convolution, parameter
from dekr_infer.export.symbolics import convolve_backwards, reshape
from dekr_infer.export.variants.branches import (
    Branches,
    biases,
    branches_of,
    concatenated,
    join_finals,
    replace_branches,
)
from dekr_infer.model.blocks import REGULAR_MATRIX

CORNERS = 4  # upper left, upper right, lower left, lower right
BORDER = 2  # cells of zeros around a map: a sample that touches no cell of it has both its rows, or columns, there
COUNT = 16  # ones that a convolution counts; two of them reach COUNT ** 2 = 256 cells, the longest input size's side


def gather_branches(network: nn.Module) -> None:
    """Replace the branches of a network whose adaptive blocks are folded, in place.

    Raises:
        DekrError: the network has no such branches.
    """
    replace_branches(network, GatherBranches(branches_of(network)))


class Places(NamedTuple):
    """The position of each cell in the map with its border, and the position of the last upper left corner."""

    columns: Tensor  # (1, H, W, 1), as floats
    rows: Tensor  # (1, H, W, 1)
    last_column: Tensor  # ()
    last_row: Tensor  # ()


class GatherBranches(nn.Module):
    """(1, joints * C, H, W) -> (1, 2 * joints, H, W), in joint order; maps up to 256 cells a side."""

    def __init__(self, branches: Branches) -> None:
        super().__init__()
        self.count = CellCounter(branches.joints * branches.width)
        self.levels = nn.ModuleList(SampledBlocks(level) for level in branches.levels)
        self.final = join_finals(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the offsets of all joints: (1, 2 * joints, H, W)."""
        places = self.count(x)
        for level in self.levels:
            x = level(x, places)
        return self.final(x)  # type: ignore[no-any-return]


class CellCounter(nn.Module):
    """Any (1, C, H, W) -> the places of its cells, counted by convolutions of ones over the cells before."""

    across: Tensor
    down: Tensor
    nothing: Tensor
    start: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ones = nn.Conv2d(channels, 1, 1)  # 1 for any value of the map
        nn.init.zeros_(self.ones.weight)
        self.ones.bias = nn.Parameter(torch.ones(1))
        self.register_buffer("across", torch.ones(1, 1, 1, COUNT))
        self.register_buffer("down", torch.ones(1, 1, COUNT, 1))
        self.register_buffer("nothing", torch.zeros(1))
        self.register_buffer("start", torch.tensor([BORDER - 1.0]))  # a cell counts itself

    def forward(self, x: Tensor) -> Places:
        """Count the cells of x."""
        ones = self.ones(x)
        columns, rows = self._counted(ones, self.across), self._counted(ones, self.down)
        return Places(columns, rows, columns.max() + 1, rows.max() + 1)

    def _counted(self, ones: Tensor, kernel: Tensor) -> Tensor:
        few = convolve_backwards(ones, kernel, self.nothing, 1)
        return convolve_backwards(few, kernel, self.start, COUNT).permute(0, 2, 3, 1)


class SampledBlocks(nn.Module):
    """One adaptive block of each joint: (1, joints * C, H, W) in and out.

    `offsets` yields 18 channels per joint: how far right each tap lies from the cell, then how far down.
    """

    corners: Tensor

    def __init__(self, blocks: Sequence[FoldedAdaptBlock]) -> None:
        super().__init__()
        self.joints, self.width = len(blocks), len(blocks[0].weight)
        moves = 2 * TAPS
        dy, dx = torch.tensor(REGULAR_MATRIX, dtype=torch.float64) * blocks[0].dilation
        taps = torch.cat((dx, dy))
        predictors = [block.offsets for block in blocks]
        shifts = [(biases(conv)[:moves].double() + taps).float() for conv in predictors]
        self.offsets = convolution(
            parameter(torch.cat([conv.weight[:moves] for conv in predictors]), *(conv.weight for conv in predictors)),
            parameter(torch.cat(shifts), *map(biases, predictors)),
            self.joints,
        )
        corners = torch.zeros(CORNERS, self.width, self.width, 2, 2)
        for channel in range(self.width):
            for corner in range(CORNERS):
                corners[corner, channel, channel, corner // 2, corner % 2] = 1
        self.register_buffer("corners", corners.flatten(0, 1))
        self.weights = nn.ParameterList(_by_corner(block.weight) for block in blocks)
        bias = concatenated([block.bias for block in blocks])
        self.bias = parameter(bias.view(1, -1, 1, 1), bias)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """Return the residual sums of all joints, of x's shape."""
        rows, shares = self._samples(x, places)
        tables = reshape(self._tables(x), self.joints, -1, CORNERS * self.width).split(1)
        parts = zip(tables, rows.split(1), shares.split(1), self.weights, strict=True)
        out = torch.cat([self._convolved(*part) for part in parts], 3).permute(0, 3, 1, 2)
        return torch.relu(out + self.bias + x)

    def _samples(self, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return table rows of samples, (joints, H, W, 9) int32, and shares of corners, (joints, H, W, 9 * 4, 1)."""
        moves = reshape(self.offsets(x), self.joints, 2 * TAPS, 0, 0).permute(0, 2, 3, 1)
        right, down = moves.split(TAPS, 3)
        whole_right, whole_down = right.floor(), down.floor()
        column = _clamped(whole_right + places.columns, places.last_column)
        row = _clamped(whole_down + places.rows, places.last_row)
        length = (places.last_column + 1).int()
        across, along = right - whole_right, down - whole_down
        by_corner = ((1 - along) * (1 - across), (1 - along) * across, along * (1 - across), along * across)
        shares = torch.cat([reshape(share, 0, 0, 0, TAPS, 1) for share in by_corner], 4)
        return row.int() * length + column.int(), reshape(shares, 0, 0, 0, TAPS * CORNERS, 1)

    def _tables(self, x: Tensor) -> Tensor:
        """Return every cell with its right, lower and lower right neighbour: (joints, H + 3, W + 3, 4 * C)."""
        by_joint = reshape(x, self.joints, self.width, 0, 0)
        return F.conv2d(by_joint, self.corners, padding=BORDER).permute(0, 2, 3, 1)

    def _convolved(self, table: Tensor, row: Tensor, share: Tensor, weight: Tensor) -> Tensor:
        """One joint's table (1, cells, 4 * C), rows (1, H, W, 9) and shares -> (1, H, W, C)."""
        cells = F.embedding(row, reshape(table, -1, CORNERS * self.width))
        worth = reshape(cells, 0, 0, 0, TAPS * CORNERS, self.width) * share
        return reshape(worth, 0, 0, 0, TAPS * CORNERS * self.width) @ weight


def _by_corner(weight: Tensor) -> nn.Parameter:
    """Return a kernel (O, C, 3, 3) as a matrix (9 * 4 * C, O): each tap's part once for every corner."""
    by_tap = weight.flatten(2).permute(2, 1, 0)
    return parameter(by_tap.unsqueeze(1).expand(-1, CORNERS, -1, -1).flatten(0, 2), weight)


def _clamped(values: Tensor, last: Tensor) -> Tensor:
    """Return values clamped to 0 ... last, by the one operator that needs no constant bound."""
    return last - torch.relu(last - torch.relu(values))
