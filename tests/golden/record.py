#!/usr/bin/env python3
"""Record what upstream's code makes of the cases: run by hand when the cases change, never by the tests.

bash scripts/setup_upstream.sh
python3 tests/golden/record.py --upstream DEKR
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.model.upstream import module, upstream_config, upstream_network, use_checkout
from tests.golden import cases

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def main() -> None:
    """Write pictures.npz, network.npz, decoding.npz and scales.npz beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, default=Path("DEKR"))
    args = parser.parse_args()
    use_checkout(args.upstream)
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    pairs = [word for pair in cases.TINY for word in pair]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "rescore.pth"
        save_rescore(weights)
        config = upstream_config(args.upstream, None, [*pairs, "RESCORE.MODEL_FILE", str(weights)])
        np.savez_compressed(HERE / "pictures.npz", **pictures())
        np.savez_compressed(HERE / "network.npz", **network(config))
        np.savez_compressed(HERE / "decoding.npz", **decoding(config))
        several = ["TEST.SCALE_FACTOR", str(list(cases.SCALES)), "TEST.DECREASE", "0.9"]
        np.savez_compressed(HERE / "scales.npz", **scales(upstream_config(args.upstream, None, [*pairs, *several])))


def save_rescore(path: Path) -> None:
    """The formula's weights for the rescoring net."""
    shapes = {"l1": (256, 74), "l2": (256, 256), "l3": (1, 256)}
    names = {f"{k}.weight": v for k, v in shapes.items()} | {f"{k}.bias": v[:1] for k, v in shapes.items()}
    torch.save({key: torch.from_numpy(value) for key, value in cases.weights(names).items()}, path)


def affine(size: Size, input_size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Upstream's centre and scale for a picture in a input size."""
    centre = np.array([int(size.w / 2.0 + 0.5), int(size.h / 2.0 + 0.5)])
    source_w = size.w if size.w < size.h else input_size.w / input_size.h * size.h
    return centre, np.array([source_w, source_w * input_size.h / input_size.w]) / 200.0


def pictures() -> dict[str, np.ndarray]:
    """For every picture size: input size, and the SHA-256 of tensor and flipped tensor."""
    recorded = {}
    transforms, inference = module("utils.transforms"), module("core.inference")
    for size in cases.PICTURE_SIZES:
        input_size = input_size_of(size)
        centre, scale = affine(size, input_size)
        matrix = transforms.get_affine_transform(centre, scale, 0, (input_size.w, input_size.h))
        rgb = cv2.cvtColor(cases.picture(size), cv2.COLOR_BGR2RGB)
        warped = cv2.warpAffine(rgb, matrix, (input_size.w, input_size.h))
        tensor = ((torch.from_numpy(warped).permute(2, 0, 1).float().div(255) - MEAN) / STD)[None]
        seen = []

        def watch(
            image: torch.Tensor, seen: list[Any] = seen, input_size: Size = input_size
        ) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(image.numpy().copy())
            return torch.zeros(1, 18, input_size.h // 4, input_size.w // 4), torch.zeros(
                1, 34, input_size.h // 4, input_size.w // 4
            )

        inference.get_multi_stage_outputs(FLIPPING, watch, tensor, True)
        digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in seen]
        recorded[f"{size.h}x{size.w}"] = np.array([f"{input_size.h}x{input_size.w}", *digests])
    return recorded


class FLIPPING:
    """The one setting that upstream's two-pass function reads."""

    class DATASET:
        DATASET = "coco"


def input_size_of(size: Size) -> Size:
    """The smallest input size that holds upstream's own size."""
    (w, h), _, _ = module("utils.transforms").get_multi_scale_size(np.zeros((*size, 1)), 512, 1.0, 1.0)
    long_side = next((side for side in (512, 768, 1024) if side >= max(w, h)), 1024)
    input_size = Size(long_side, 512) if size.w < size.h else Size(512, long_side)
    assert input_size == PUBLISHED_SIZES.place(size).input
    return input_size


def network(config: Any) -> dict[str, np.ndarray]:
    """The tiny network's outputs."""
    net = upstream_network(config)
    state = net.state_dict()
    values = cases.weights({key: tuple(value.shape) for key, value in state.items()})
    net.load_state_dict({key: torch.from_numpy(values[key]) if key in values else state[key] for key in state})
    heat, offset = net(torch.from_numpy(cases.network_input()))
    return {"keys": np.array(list(state)), "heat": heat.numpy(), "offset": offset.numpy()}


def merged(config: Any, maps: cases.Maps, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Upstream's merging of both passes over maps that stand in for a network's."""
    turns = iter(((maps.heat, maps.offset), (maps.heat_flip, maps.offset_flip)))

    def hand_out(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(values[None].copy()) for values in next(turns))

    outputs: tuple[torch.Tensor, torch.Tensor]
    outputs = module("core.inference").get_multi_stage_outputs(config, hand_out, torch.zeros(1, 3, 8, 8), flip)
    return outputs


def decoding(config: Any) -> dict[str, np.ndarray]:
    """For every case, with flip and without: kept poses, scores, final poses, rescored scores, matched poses."""
    recorded = {}
    inference, transforms = module("core.inference"), module("utils.transforms")
    input_size = Size(cases.MAP.h * 4, cases.MAP.w * 4)
    centre, scale = affine(cases.IMAGE, input_size)
    for name, maps in map_cases_in_order():
        for flip in (True, False):
            heat, poses_map = merged(config, maps, flip)
            total, proposals = inference.aggregate_results(config, 0, [], heat, poses_map, 1.0)
            kept, scores = module("core.nms").pose_nms(config, total, proposals)
            key = f"{name}/{'flip' if flip else 'single'}"
            if not len(scores):
                recorded |= {f"{key}/kept": np.zeros((0, 17, 3), np.float32), f"{key}/scores": np.zeros(0)}
                continue
            final = np.array(transforms.get_final_preds(kept, centre, scale, (input_size.w, input_size.h)))
            recorded |= {f"{key}/kept": kept[0], f"{key}/scores": np.array(scores), f"{key}/final": final}
            recorded[f"{key}/rescored"] = np.array(module("utils.rescore").rescore_valid(config, final, scores))
            if name == "hills":
                matched = module("core.match").match_pose_to_heatmap(config, [kept[0].copy()], total)
                recorded[f"{key}/matched"] = matched[0]
    return recorded


def scales(config: Any) -> dict[str, np.ndarray]:
    """For every case of several scales, with flip and without: kept poses, scores, matched poses."""
    recorded = {}
    inference = module("core.inference")
    for name, case in cases.scale_cases().items():
        for flip in (True, False):
            total, proposals = 0, []
            for scale in cases.SCALES:
                heat, poses_map = merged(config, case[scale], flip)
                total, proposals = inference.aggregate_results(config, total, proposals, heat, poses_map, scale)
            mean = total / len(cases.SCALES)
            kept, scores = module("core.nms").pose_nms(config, mean, proposals)
            key = f"{name}/{'flip' if flip else 'single'}"
            recorded |= {f"{key}/kept": kept[0], f"{key}/scores": np.array(scores)}
            if name == "hills":
                matched = module("core.match").match_pose_to_heatmap(config, [kept[0].copy()], mean)
                recorded[f"{key}/matched"] = matched[0]
    return recorded


def map_cases_in_order() -> list[tuple[str, cases.Maps]]:
    """Upstream fails on a pose whose joints are all in one point, so that case is not recorded."""
    return [(name, maps) for name, maps in cases.map_cases().items() if name != "no size"]


if __name__ == "__main__":
    main()
