"""Upstream's own code as a further way of doing each stage; needs a checkout patched by DEKR.patch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.data.coco import ImageEntry
from dekr_infer.data.sources import ImageFiles
from dekr_infer.evaluation.upstream_comparison import padded_network
from dekr_infer.geometry import PUBLISHED_SIZES, Placement
from dekr_infer.model.upstream import module, upstream_config, use_checkout
from dekr_infer.pose.preprocess import MEAN, STD
from dekr_infer.structures import output_files

Folders = tuple[Path, Path]


class Upstream:
    """A checkout, with the network and the settings that ours has.

    Its transforms need torchvision only to convert an image to a tensor; torch does that here.
    """

    def __init__(self, checkout: Path, config: CfgNode, rescore: Path) -> None:
        use_checkout(checkout)
        warnings.simplefilter("ignore")  # its code warns on every call
        self.config = upstream_config(checkout, None, ["RESCORE.MODEL_FILE", str(rescore)])
        self.config.defrost()
        self.config.MODEL.SPEC = config.MODEL.SPEC.clone()
        self.config.freeze()

    def network(self, checkpoint: Path) -> nn.Module:
        """Return upstream's network with a checkpoint's weights."""
        return padded_network(self.config, checkpoint)

    def write_tensors(self, images: Sequence[ImageEntry], files: ImageFiles, folders: Folders) -> None:
        """Warp and flip with upstream's code, normalise as its transforms do, and save with numpy."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        for image in images:
            placement = PUBLISHED_SIZES.place(image.size)
            rgb = cv2.cvtColor(files.decode(image), cv2.COLOR_BGR2RGB)
            warped = module("utils.transforms").crop(rgb, *_centre_scale(placement), placement.input[::-1])
            tensor = ((torch.from_numpy(warped).permute(2, 0, 1).contiguous().float().div(255) - mean) / std)[None]
            inputs: list[Tensor] = []

            def network(value: Tensor, inputs: list[Tensor] = inputs) -> tuple[Tensor, Tensor]:
                inputs.append(value)
                return torch.zeros(1, 18, 1, 1), torch.zeros(1, 34, 1, 1)

            module("core.inference").get_multi_stage_outputs(self.config, network, tensor, True)
            for folder, values in zip(folders, inputs, strict=True):
                np.save(folder / f"{image.stem}.npy", values.numpy())

    def find_people(self, images: Sequence[ImageEntry], folders: Folders) -> list[tuple[Any, Any]]:
        """Merge, decode and rescore with upstream's code; return poses and scores of every image."""
        found = []
        inference, transforms = module("core.inference"), module("utils.transforms")
        for image in images:
            paths = [[folder / name for name in output_files(image.stem)] for folder in folders]
            maps = [[torch.from_numpy(np.load(path)) for path in both] for both in paths]
            network = partial(next, iter(maps))  # returns recorded maps; `next` takes the input as its default
            placement = PUBLISHED_SIZES.place(image.size)
            with torch.no_grad():
                blank = torch.zeros(1, 1, 1, 4)
                heat, poses = inference.get_multi_stage_outputs(self.config, network, blank, True)
                total, proposals = inference.aggregate_results(self.config, 0, [], heat, poses, 1.0)
                kept, scores = module("core.nms").pose_nms(self.config, total, proposals)
                final: Any = []
                if len(scores):
                    final = transforms.get_final_preds(kept, *_centre_scale(placement), placement.input[::-1])
                    scores = module("utils.rescore").rescore_valid(self.config, final, scores)
            found.append((final, scores))
        return found


def _centre_scale(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and scale, the form in which upstream's warp takes a placement."""
    (h, w), size = placement.image, placement.input
    source_w = w if w < h else size.w / size.h * h
    centre = np.array([int(w / 2.0 + 0.5), int(h / 2.0 + 0.5)])
    return centre, np.array([source_w, source_w * size.h / size.w]) / 200.0
