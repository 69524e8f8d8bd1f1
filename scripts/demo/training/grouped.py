"""The demo network as it is trained: DEKR with the 17 joints' branches side by side in single tensors.

`grouped_state` and `checkpoint_state` carry weights between this layout and the checkpoint's, exactly: every value
of a joint's branch is in the slice of that joint. The final layer's weights are kept in units of `OFFSET_UNIT`
cells, so that an optimizer with steps of one size reaches offsets of tens of cells soon.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.model.blocks import REGULAR_MATRIX, BasicBlock, conv_bn
from dekr_infer.model.hrnet import HighResolutionNet
from dekr_infer.skeleton import COCO_17
from scripts.demo.training.adaptive_conv import adaptive_conv

JOINTS = len(COCO_17)

OFFSET_UNIT = 16.0  # cells
SHAPE = 6  # numbers that place a cell's taps: A row by row, then t
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class GroupedBlock(nn.Module):
    """The adaptive blocks of all joints: (N, J * C, H, W) -> (M, J, C) at M chosen cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.shape = nn.Conv2d(JOINTS * channels, JOINTS * SHAPE, 3, 1, 1, groups=JOINTS)
        self.weight = nn.Parameter(torch.empty(JOINTS * channels, channels, 3, 3))
        self.bn = nn.BatchNorm1d(JOINTS * channels)
        nn.init.normal_(self.shape.weight, std=0.01)
        identity = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
        assert self.shape.bias is not None
        self.shape.bias.data.copy_(identity.repeat(JOINTS))
        nn.init.normal_(self.weight, std=(2 / (9 * channels)) ** 0.5)

    def forward(self, x: Tensor, cells: Tensor) -> Tensor:
        """Return the features at the cells, indices into N * H * W."""
        n, _, h, w = x.shape
        shape = self.shape(x).permute(0, 2, 3, 1).reshape(n * h * w, JOINTS, SHAPE)
        with torch.autocast(x.device.type, enabled=False):
            maps = x.float().permute(0, 2, 3, 1).reshape(n, h, w, JOINTS, self.channels)
            near, skip = shape.index_select(0, cells), maps.flatten(0, 2).index_select(0, cells)
            out = adaptive_conv(maps, near.float(), self.weight.unflatten(0, (JOINTS, -1)), cells)
            return torch.relu(self.bn(out.flatten(1)).view_as(out) + skip)


class GroupedNet(HighResolutionNet):
    """DEKR with grouped branches, whose offsets are computed at chosen cells only.

    Args:
        spec: `MODEL.SPEC` of the configuration.
    Raises:
        ValueError: only one adaptive block, without dilation, and a 1x1 final layer are supported.
    """

    def __init__(self, spec: CfgNode) -> None:
        stages, heat, offset = spec.STAGES, spec.HEAD_HEATMAP, spec.HEAD_OFFSET
        if (offset.NUM_BLOCKS, offset.DILATION_RATE, spec.FINAL_CONV_KERNEL) != (1, 1, 1):
            raise ValueError("training needs HEAD_OFFSET with 1 block and dilation 1, and FINAL_CONV_KERNEL 1")
        super().__init__(spec.STEM_CHANNELS, stages.NUM_CHANNELS, stages.NUM_MODULES, stages.NUM_BLOCKS)
        channels = offset.NUM_CHANNELS_PERKPT
        self.transition_heatmap = conv_bn(self.channels, heat.NUM_CHANNELS, 1, relu=True)
        self.transition_offset = conv_bn(self.channels, JOINTS * channels, 1, relu=True)
        heat_blocks = (BasicBlock(heat.NUM_CHANNELS, heat.DILATION_RATE) for _ in range(heat.NUM_BLOCKS))
        final = nn.Conv2d(heat.NUM_CHANNELS, COCO_17.heatmap_channels, 1)
        nn.init.normal_(final.weight, std=0.01)
        self.head_heatmap = nn.ModuleList([nn.Sequential(*heat_blocks), final])
        self.adaptive = GroupedBlock(channels)
        self.final_weight = nn.Parameter(torch.randn(JOINTS, 2, channels) * (0.1 / channels**0.5))
        self.final_bias = nn.Parameter(torch.zeros(JOINTS, 2))

    def forward(self, image: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return heatmaps everywhere, and offsets at chosen cells.

        Args:
            image: (N, 3, H, W) normalised RGB.
            cells: (M,) int64, ascending indices into N * H/4 * W/4.
        Returns:
            heat (N, 18, H/4, W/4) and offset (M, J, 2), x then y, in cells; float32.
        """
        features = self.features(image)
        blocks, final = self.head_heatmap
        heat = final(blocks(self.transition_heatmap(features)))
        x = self.transition_offset(features)
        near = self.adaptive(x, cells)
        with torch.autocast(x.device.type, enabled=False):
            offset = torch.einsum("mjc,joc->mjo", near, self.final_weight) + self.final_bias
        return heat.float(), offset * OFFSET_UNIT


def checkpoint_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a grouped state dict in the checkpoint's layout."""
    result = {k: v for k, v in state.items() if not k.startswith(("adaptive.", "final_"))}
    taps = torch.tensor(REGULAR_MATRIX, dtype=torch.float32)
    for joint in range(JOINTS):
        to = f"offset_feature_layers.{joint}.0"
        for kind in ("weight", "bias"):
            shape = state[f"adaptive.shape.{kind}"].unflatten(0, (JOINTS, SHAPE))[joint]
            result[f"{to}.transform_matrix_conv.{kind}"] = shape[:4]
            result[f"{to}.translation_conv.{kind}"] = shape[4:]
        result[f"{to}.adapt_conv.weight"] = state["adaptive.weight"].unflatten(0, (JOINTS, -1))[joint]
        result[f"{to}.regular_matrix"] = taps
        for kind in BATCH_NORM:
            value = state[f"adaptive.bn.{kind}"]
            result[f"{to}.bn.{kind}"] = value.unflatten(0, (JOINTS, -1))[joint] if value.dim() else value
        to = f"offset_final_layer.{joint}"
        result[f"{to}.weight"] = state["final_weight"][joint, :, :, None, None] * OFFSET_UNIT
        result[f"{to}.bias"] = state["final_bias"][joint] * OFFSET_UNIT
    return {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in result.items()}


def grouped_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's state dict in the grouped layout; the inverse of `checkpoint_state`."""
    result = {k: v.clone() for k, v in state.items() if not k.startswith(("offset_feature", "offset_final"))}

    def joints(pattern: str) -> Tensor:
        return torch.stack([state[pattern.format(joint)] for joint in range(JOINTS)])

    of = "offset_feature_layers.{}.0"
    for kind in ("weight", "bias"):
        parts = [joints(f"{of}.{conv}.{kind}") for conv in ("transform_matrix_conv", "translation_conv")]
        result[f"adaptive.shape.{kind}"] = torch.cat(parts, 1).flatten(0, 1)
    result["adaptive.weight"] = joints(f"{of}.adapt_conv.weight").flatten(0, 1)
    for kind in BATCH_NORM:
        value = joints(f"{of}.bn.{kind}")
        result[f"adaptive.bn.{kind}"] = value.flatten() if value.dim() > 1 else value[0]
    result["final_weight"] = joints("offset_final_layer.{}.weight")[..., 0, 0] / OFFSET_UNIT
    result["final_bias"] = joints("offset_final_layer.{}.bias") / OFFSET_UNIT
    return result
