"""Seeded random weights in the official layout, with which every command can be rehearsed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.geometry import Size
from dekr_infer.model.blocks import AdaptBlock, BasicBlock, Bottleneck
from dekr_infer.model.head import DekrNet, build_network
from dekr_infer.pose.preprocess import normalise
from dekr_infer.pose.rescore import layer_shapes
from dekr_infer.skeleton import COCO_17, Skeleton

CALIBRATION = Size(128, 128)  # pixels of the images that set the batch norms' statistics
IMAGES = 4
CONTRAST, BRIGHTNESS, OWN_COLOUR = 60.0, 110.0, 0.4  # of these images: grey levels, and each channel's own share
RESIDUAL_SCALE = (0.2, 0.4)  # batch norm weights at the end of a block: float noise grows as little as in a trained net
HEAT_MEAN, HEAT_SPREAD = 0.05, 0.1  # of the random heatmaps
OFFSET_SPREAD = 3.0  # cells: how far a joint lies from its cell
MATRIX_SPREAD, TRANSLATION_SPREAD = 0.8, 1.2  # cells: of the taps' affine map about the identity


def random_network(config: CfgNode, seed: int) -> DekrNet:
    """Return the network of a configuration with well-conditioned random weights, in evaluation mode.

    It finds nothing, but it behaves: activations stay of order one, the deformable taps move by a cell or two, offsets
    are of the size of people, and the centre map has peaks. Leaves torch's generator seeded.
    """
    torch.manual_seed(seed)
    network = build_network(config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.uniform_(module.bn2.weight, *RESIDUAL_SCALE)
        elif isinstance(module, Bottleneck):
            nn.init.uniform_(module.bn3.weight, *RESIDUAL_SCALE)
        elif isinstance(module, AdaptBlock):
            nn.init.uniform_(module.bn.weight, *RESIDUAL_SCALE)
            _spread(module.transform_matrix_conv, MATRIX_SPREAD)
            _spread(module.translation_conv, TRANSLATION_SPREAD)
            module.transform_matrix_conv.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    final_heat = network.head_heatmap[1]
    assert isinstance(final_heat, nn.Conv2d) and final_heat.bias is not None
    _spread(final_heat, HEAT_SPREAD)
    nn.init.constant_(final_heat.bias, HEAT_MEAN)
    for layer in network.offset_final_layer:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        _spread(layer, OFFSET_SPREAD)
        nn.init.normal_(layer.bias, 0.0, OFFSET_SPREAD)
    _calibrate(network, seed)
    return network.eval()


def _spread(conv: nn.Conv2d, spread: float) -> None:
    """Set weights that turn unit activations into outputs of this standard deviation."""
    nn.init.normal_(conv.weight, 0.0, spread / conv.weight[0].numel() ** 0.5)


def cloudy_image(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Return noise whose amplitude falls with frequency as in photographs, (h, w, 3) uint8.

    Flat noise would set the norms for a contrast that photographs exceed several times in coarse structures.
    """
    frequency = np.hypot(np.fft.fftfreq(size.h)[:, None], np.fft.rfftfreq(size.w))
    falloff = 1 / np.maximum(frequency, 1 / max(size))
    common = rng.standard_normal(size)
    channels = []
    for _ in range(3):
        flat = common + OWN_COLOUR * rng.standard_normal(size)
        clouds = np.fft.irfft2(np.fft.rfft2(flat) * falloff, size)
        channels.append(clouds / clouds.std())
    return (np.stack(channels, -1) * CONTRAST + BRIGHTNESS).clip(0, 255).astype(np.uint8)


def _calibrate(network: nn.Module, seed: int) -> None:
    """Set the batch norms' running statistics to those of a few random images."""
    rng = np.random.default_rng(seed)
    images = [normalise(cloudy_image(rng, CALIBRATION)) for _ in range(IMAGES)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over the batches seen
    network.train()
    with torch.inference_mode():
        network(torch.from_numpy(np.concatenate(images)))
    for norm in norms:
        norm.momentum = 0.1


def random_rescore(hidden: int, skeleton: Skeleton = COCO_17) -> dict[str, Tensor]:
    """Return a rescoring net's state dict, from torch's generator: keys l1, l2, l3; scores scatter about one half."""
    net = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layer_shapes(hidden, skeleton).items()})
    state: dict[str, Tensor] = net.state_dict()
    state["l3.bias"].fill_(0.5)
    return state
