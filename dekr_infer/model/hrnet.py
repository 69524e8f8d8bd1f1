"""The HRNet backbone: image in, one concatenated feature map at a quarter of its size out.

Module names are those of upstream's state dict.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekr_infer.model.blocks import BasicBlock, Bottleneck, conv_bn


class HighResolutionModule(nn.Module):
    """Blocks on each branch, then every branch receives the sum of all, brought to its size and width."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(count)))
            for count, width in zip(blocks, widths, strict=True)
        )
        indices = range(len(widths))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(source, target, widths) for source in indices) for target in indices
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return every branch's maps after exchanging with all others."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for layers in self.fuse_layers:
            assert isinstance(layers, nn.ModuleList)
            parts = [layer(x) for layer, x in zip(layers, maps, strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            fused.append(torch.relu(total))
        return fused


def _fuse_layer(source: int, target: int, widths: Sequence[int]) -> nn.Module:
    """Return the layer from branch `source` to branch `target`: 1x1 and nearest up-sampling, or strided 3x3 steps."""
    if source == target:
        return nn.Identity()
    if source > target:
        up = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest")
        return nn.Sequential(*conv_bn(widths[source], widths[target], 1, relu=False), up)
    steps = [conv_bn(widths[source], widths[source], 3, 2, relu=True) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_bn(widths[source], widths[target], 3, 2, relu=False))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Return the layers between two stages: adapt the widths, add the new, smaller branches."""
    layers: list[nn.Module] = []
    for index, width in enumerate(after):
        if index < len(before):
            same = before[index] == width
            layers.append(nn.Identity() if same else conv_bn(before[index], width, 3, relu=True))
        else:
            steps = index - len(before)
            halving = [conv_bn(before[-1], before[-1], 3, 2, relu=True) for _ in range(steps)]
            layers.append(nn.Sequential(*halving, conv_bn(before[-1], width, 3, 2, relu=True)))
    return nn.ModuleList(layers)


class HighResolutionNet(nn.Module):
    """Stem, first layer and the multi-resolution stages.

    Args:
        stem: channels of the stem (64 in HRNet).
        widths: per stage, the channels of each branch.
        modules: per stage, how many `HighResolutionModule`s.
        blocks: per stage, the basic blocks of each branch.
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[Sequence[int]],
        modules: Sequence[int],
        blocks: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        outputs = stem * Bottleneck.expansion
        self.layer1 = nn.Sequential(Bottleneck(stem, stem), *(Bottleneck(outputs, stem) for _ in range(3)))
        self.stages = len(widths)
        self.channels = sum(widths[-1])
        before: Sequence[int] = [outputs]
        for stage, after in enumerate(widths):
            self.add_module(f"transition{stage + 1}", _transition(before, after))
            stack = (HighResolutionModule(blocks[stage], after) for _ in range(modules[stage]))
            self.add_module(f"stage{stage + 2}", nn.Sequential(*stack))
            before = after

    def features(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) normalised RGB -> (N, `channels`, H/4, W/4); H and W multiples of 32."""
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer1(torch.relu(self.bn2(self.conv2(x))))
        maps = [x]
        for stage in range(self.stages):
            transition = self.get_submodule(f"transition{stage + 1}")
            assert isinstance(transition, nn.ModuleList)
            known = len(maps)
            sources = (maps[min(index, known - 1)] for index in range(len(transition)))
            maps = [layer(source) for layer, source in zip(transition, sources, strict=True)]
            maps = self.get_submodule(f"stage{stage + 2}")(maps)
        enlarged = [
            F.interpolate(x, scale_factor=float(2**index), mode="bilinear", align_corners=False)
            for index, x in enumerate(maps[1:], start=1)
        ]
        return torch.cat([maps[0], *enlarged], 1)
