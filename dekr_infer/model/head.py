"""The two heads on the backbone, and the network's construction from the configuration.

Module names are those of upstream's state dict; the joints' branches stay separate, as in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.errors import ConfigError
from dekr_infer.model.blocks import AdaptBlock, BasicBlock, conv_bn
from dekr_infer.model.hrnet import HighResolutionNet
from dekr_infer.skeleton import COCO_17

MOST = 4096  # channels, modules, blocks or dilation; W48's largest is 384
MOST_LAYERS = 5000  # W48 has 1,100
MOST_PARAMETERS = 500_000_000  # 2 GB; W48 has 66 million


class DekrNet(HighResolutionNet):
    """DEKR: `image` (N, 3, H, W) -> `heatmap` (N, J + 1, H/4, W/4), `offset` (N, 2 J, H/4, W/4).

    The heatmap holds J joints, then the person centre; the offset x then y of each joint, in cells, so that
    joint = cell - offset.
    """

    def __init__(self, spec: CfgNode, joints: int = len(COCO_17)) -> None:
        stages = spec.STAGES
        super().__init__(spec.STEM_CHANNELS, stages.NUM_CHANNELS, stages.NUM_MODULES, stages.NUM_BLOCKS)
        heat, offset = spec.HEAD_HEATMAP, spec.HEAD_OFFSET
        self.per_joint: int = offset.NUM_CHANNELS_PERKPT
        self.transition_heatmap = conv_bn(self.channels, heat.NUM_CHANNELS, 1, relu=True)
        self.transition_offset = conv_bn(self.channels, joints * self.per_joint, 1, relu=True)
        heat_blocks = (BasicBlock(heat.NUM_CHANNELS, heat.DILATION_RATE) for _ in range(heat.NUM_BLOCKS))
        self.head_heatmap = nn.ModuleList(
            [nn.Sequential(*heat_blocks), _final(heat.NUM_CHANNELS, joints + 1, spec.FINAL_CONV_KERNEL)]
        )
        self.offset_feature_layers = nn.ModuleList(
            nn.Sequential(*(AdaptBlock(self.per_joint, offset.DILATION_RATE) for _ in range(offset.NUM_BLOCKS)))
            for _ in range(joints)
        )
        self.offset_final_layer = nn.ModuleList(
            _final(self.per_joint, 2, spec.FINAL_CONV_KERNEL) for _ in range(joints)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return heatmap and offset of images (N, 3, H, W)."""
        features = self.features(image)
        blocks, final = self.head_heatmap
        heatmap = final(blocks(self.transition_heatmap(features)))
        by_joint = torch.split(self.transition_offset(features), self.per_joint, dim=1)
        branches = zip(self.offset_feature_layers, self.offset_final_layer, by_joint, strict=True)
        offset = torch.cat([last(blocks(x)) for blocks, last, x in branches], 1)
        return heatmap, offset


def _final(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2)


def _numbers(value: object) -> Iterator[int]:
    """Yield the whole numbers in a section of the configuration."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int):
        yield value


def build_network(config: CfgNode) -> DekrNet:
    """Build the network of a configuration, in evaluation mode, without weights.

    Raises:
        ConfigError: MODEL.SPEC names blocks, or numbers of stages and branches, that do not fit together.
    """
    spec = config.MODEL.SPEC
    stages = spec.STAGES
    blocks = {*stages.BLOCK, spec.HEAD_HEATMAP.BLOCK}
    if blocks != {"BASIC"} or spec.HEAD_OFFSET.BLOCK != "ADAPTIVE":
        raise ConfigError("MODEL.SPEC: only BASIC blocks and an ADAPTIVE offset head are supported")
    per_stage = (stages.NUM_MODULES, stages.NUM_BRANCHES, stages.NUM_BLOCKS, stages.NUM_CHANNELS)
    if any(len(entry) != stages.NUM_STAGES for entry in per_stage):
        raise ConfigError(f"MODEL.SPEC.STAGES: every list needs NUM_STAGES = {stages.NUM_STAGES} entries")
    for count, *lists in zip(stages.NUM_BRANCHES, stages.NUM_BLOCKS, stages.NUM_CHANNELS, strict=True):
        if any(len(entry) != count for entry in lists):
            raise ConfigError(f"MODEL.SPEC.STAGES: a stage of {count} branches needs {count} widths and block counts")
    large = [value for value in _numbers(spec) if value > MOST]
    layers = sum(n * sum(blocks) for n, blocks in zip(stages.NUM_MODULES, stages.NUM_BLOCKS, strict=True))
    layers += spec.HEAD_HEATMAP.NUM_BLOCKS + config.MODEL.NUM_JOINTS * spec.HEAD_OFFSET.NUM_BLOCKS
    if large or layers > MOST_LAYERS:
        found = f"{large[0]}, at most {MOST} is" if large else f"{layers} blocks, at most {MOST_LAYERS} are"
        raise ConfigError(f"MODEL.SPEC: has {found} supported; correct MODEL.SPEC")
    try:
        joints = config.MODEL.NUM_JOINTS
        with torch.device("meta"):  # takes no memory
            parameters = sum(weight.numel() for weight in DekrNet(spec, joints).parameters())
        if parameters > MOST_PARAMETERS:
            raise ConfigError(f"MODEL.SPEC: has {parameters:,} parameters, at most {MOST_PARAMETERS:,} are supported")
        return DekrNet(spec, joints).eval()
    except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError) as error:  # torch's, for such layers
        raise ConfigError(
            f"MODEL.SPEC: no network can have these widths and counts ({error}); correct MODEL.SPEC"
        ) from None
