"""Upstream's own code as a further way of doing each stage; needs a checkout patched by DEKR.patch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from dekr_infer.backends.upstream_comparison import padded_network
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.data.coco import Picture, PictureFiles
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.model.upstream import module, upstream_config, use_checkout
from dekr_infer.pose import preprocess

Folders = tuple[Path, Path]


class Upstream:
    """A checkout, with the configuration that ours has.

    Its transforms need torchvision only to make a tensor of a picture; torch does that here.
    """

    def __init__(self, checkout: Path, config: CfgNode, rescore: Path) -> None:
        use_checkout(checkout)
        tree = upstream_config(checkout, None, ["RESCORE.MODEL_FILE", str(rescore)])
        tree.defrost()
        tree.MODEL.SPEC = config.MODEL.SPEC.clone()
        tree.freeze()
        self.config = tree

    def network(self, checkpoint: Path) -> nn.Module:
        """Its network with a checkpoint's weights."""
        return padded_network(self.config, checkpoint)

    def write_tensors(self, pictures: Sequence[Picture], files: PictureFiles, folders: Folders) -> None:
        """Its warp, the usual normalisation and its mirroring, saved by numpy."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.MEAN, preprocess.STD))
        for picture in pictures:
            image = preprocess.decode(files.read(picture.file_name), picture.file_name)
            input_size = PUBLISHED_SIZES.place(picture.size).input
            centre, scale = _placing(picture.size, input_size)
            warped = module("utils.transforms").crop(
                cv2.cvtColor(image, cv2.COLOR_BGR2RGB), centre, scale, (input_size.w, input_size.h)
            )
            tensor = ((torch.from_numpy(warped).permute(2, 0, 1).contiguous().float().div(255) - mean) / std)[None]
            seen = _Seen(None)
            module("core.inference").get_multi_stage_outputs(self.config, seen, tensor, True)
            for folder, values in zip(folders, seen.images, strict=True):
                np.save(folder / f"{picture.stem}.npy", values.numpy())

    def find_people(self, pictures: Sequence[Picture], folders: Folders) -> list[tuple[Any, Any]]:
        """Its merge, decoding and rescoring (whose net the patch loads once): poses and scores of every picture."""
        found = []
        inference, transforms = module("core.inference"), module("utils.transforms")
        for picture in pictures:
            maps = [
                tuple(torch.from_numpy(np.load(folder / f"{picture.stem}_{index}.npy")) for index in (0, 1))
                for folder in folders
            ]
            input_size = PUBLISHED_SIZES.place(picture.size).input
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = torch.zeros(1, 1, 1, 4)
                heat, poses_map = inference.get_multi_stage_outputs(self.config, _Seen(maps), image, True)
                total, proposals = inference.aggregate_results(self.config, 0, [], heat, poses_map, 1.0)
                kept, scores = module("core.nms").pose_nms(self.config, total, proposals)
                final: Any = []
                if len(scores):
                    final = transforms.get_final_preds(
                        kept, *_placing(picture.size, input_size), (input_size.w, input_size.h)
                    )
                    scores = module("utils.rescore").rescore_valid(self.config, final, scores)
            found.append((final, scores))
        return found


class _Seen:
    """Stands in for the network in upstream's two-pass function: keeps the images, hands out maps."""

    def __init__(self, maps: Sequence[tuple[Tensor, ...]] | None) -> None:
        self.maps = maps
        self.images: list[Tensor] = []

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        self.images.append(image)
        if self.maps is None:
            return torch.zeros(1, 18, 1, 1), torch.zeros(1, 34, 1, 1)
        return self.maps[len(self.images) - 1]


def _placing(size: Size, input_size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale as upstream's warp wants them."""
    h, w = size
    centre = np.array([int(w / 2.0 + 0.5), int(h / 2.0 + 0.5)])
    source_w = w if w < h else input_size.w / input_size.h * h
    return centre, np.array([source_w, source_w * input_size.h / input_size.w]) / 200.0
