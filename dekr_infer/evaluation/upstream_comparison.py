"""The stages of the chain, computed by upstream's code and by ours from the same inputs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.config.load import CROWD, skeleton_of
from dekr_infer.config.settings import configured_sizes, decode_settings, refine_settings, rescore_net
from dekr_infer.data.coco import DataSet, ImageEntry
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.detector import Detector
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.export.trace import build_graph
from dekr_infer.geometry import STRIDE, Placement, Size
from dekr_infer.model.checkpoint import load_network, read_state
from dekr_infer.model.head import build_network
from dekr_infer.model.upstream import module, upstream_network
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.pose import decode, preprocess
from dekr_infer.pose.encode import Encoding, noisy, outputs_of
from dekr_infer.pose.refine import match_to_heatmap, match_to_scales, merged_joints
from dekr_infer.structures import Maps, Passes, People

# Largest difference allowed at each stage, in the unit of what is compared.
TOLERANCES = {
    "tensor": 0.0,
    "flipped tensor": 0.0,
    "heatmap": 1e-4,
    "offset (cells)": 5e-3,
    "merged heatmap": 1e-6,
    "merged poses (pixels)": 1e-4,
    "candidates": 1e-6,
    "kept poses (pixels)": 1e-3,
    "joint scores": 1e-5,
    "final poses (pixels)": 1e-3,
    "rescored scores": 1e-5,
    "result file": 1e-3,
    "ten metrics": 1e-6,
}


class Differences:
    """The largest absolute difference seen at each stage, and what it was seen against."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.scale: dict[str, float] = {}

    def note(self, stage: str, upstream: Any, ours: Any) -> None:
        """Add a pair of arrays; other shapes count as an infinite difference."""
        a, b = np.asarray(upstream, np.float64), np.asarray(ours, np.float64)
        same = a.shape == b.shape
        difference = float(np.abs(a - b).max(initial=0.0)) if same else float("inf")
        self.largest[stage] = max(self.largest.get(stage, 0.0), difference)
        self.scale[stage] = max(self.scale.get(stage, 0.0), float(np.abs(a).max(initial=0.0)))

    def holds(self, stage: str) -> bool:
        """Return whether a stage is within its tolerance."""
        return self.largest[stage] <= TOLERANCES[stage]

    def rows(self) -> list[dict[str, Any]]:
        """Return one entry a stage, ready for JSON; `None` replaces infinity, which JSON lacks."""
        return [
            {
                "stage": stage,
                "difference": value if np.isfinite(value) else None,
                "tolerance": TOLERANCES[stage],
                "holds": self.holds(stage),
            }
            for stage, value in self.largest.items()
        ]

    def table(self) -> str:
        """Return the stages as lines."""
        return "\n".join(
            f"  {stage:<22} {value:9.2e} of {self.scale[stage]:<9.4g} allowed {TOLERANCES[stage]:g}  "
            f"{'ok' if self.holds(stage) else 'EXCEEDED'}"
            for stage, value in self.largest.items()
        )


class _Recorder:
    """Replaces the network in upstream's two-pass function: returns given maps and records its inputs."""

    def __init__(self, outputs: list[tuple[np.ndarray, np.ndarray]] | nn.Module) -> None:
        self.source = outputs
        self.images: list[np.ndarray] = []
        self.maps: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.images.append(image.numpy().copy())
        if isinstance(self.source, nn.Module):
            heat, offset = self.source(image)
        else:
            heat, offset = (torch.from_numpy(m.copy()) for m in self.source[len(self.maps)])
        self.maps.append((heat.numpy().copy(), offset.numpy().copy()))
        return heat, offset


class Comparison:
    """Both implementations with the same settings; collects the people that each finds.

    Args:
        config: ours. upstream: the checkout's own tree, with the same values.
        checkpoint: the network to compare; `None` for maps drawn from the annotations.
    """

    def __init__(self, config: CfgNode, upstream: CfgNode, checkpoint: Path | None, threads: int) -> None:
        self.config = config
        self.upstream = self._aligned(upstream)
        self.skeleton, self.input_sizes = skeleton_of(config), configured_sizes(config)
        self.scales = sorted(map(float, config.TEST.SCALE_FACTOR), reverse=True)
        self.detector = Detector(
            OutputFolder(Path()),
            decode_settings(config),
            refine=refine_settings(config),
            rescore=rescore_net(config),
            skeleton=self.skeleton,
        )
        self.rng = np.random.default_rng(0)
        self.found: list[tuple[ImageEntry, People]] = []
        self.found_upstream: list[tuple[list[np.ndarray], list[float]]] = []
        self.network: nn.Module | None = None
        self.graph: OnnxRuntime | None = None
        self.files = ImageFiles(image_source(config.DATASET.ROOT, config.DATASET.TEST))
        torch.set_num_threads(threads)
        if checkpoint is not None:
            self.network = padded_network(self.upstream, checkpoint)
            self.graph = _exported(config, checkpoint, threads)

    def _aligned(self, upstream: CfgNode) -> CfgNode:
        tree = upstream.clone()
        tree.defrost()
        source = image_source(self.config.DATASET.ROOT, self.config.DATASET.TEST)
        tree.DATASET.DATA_FORMAT = "zip" if source.suffix == ".zip" else "jpg"
        for key in ("DATASET", "NUM_JOINTS", "TEST", "INPUT_SIZE", "OUTPUT_SIZE"):
            tree.DATASET[key] = self.config.DATASET[key]
        tree.MODEL.NUM_JOINTS = self.config.MODEL.NUM_JOINTS
        tree.MODEL.SPEC = self.config.MODEL.SPEC.clone()
        for key in set(tree.TEST) & set(self.config.TEST):
            tree.TEST[key] = self.config.TEST[key]
        tree.freeze()
        return tree

    def compare(self, entry: ImageEntry, data: DataSet, differences: Differences) -> None:
        """Compare all stages of one image."""
        placement = self.input_sizes.place(entry.size)
        input_size = placement.input
        image = self.files.decode(entry)
        total: Any = 0
        proposals: list[Tensor] = []
        scales: dict[float, Passes] = {}
        for scale_factor in self.scales:
            centre, scale, heat, poses_map, passes = self._compare_scale(image, entry, data, scale_factor, differences)
            with torch.no_grad():
                total, proposals = module("core.inference").aggregate_results(
                    self.upstream, total, proposals, heat, poses_map, scale_factor
                )
            scales[scale_factor] = passes
        total, transforms = total / len(self.scales), module("utils.transforms")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept, scores = module("core.nms").pose_nms(self.upstream, total, proposals)
            if len(scores) and self.upstream.TEST.MATCH_HMP:
                kept = module("core.match").match_pose_to_heatmap(self.upstream, kept, total)
            final = transforms.get_final_preds(kept, centre, scale, (input_size.w, input_size.h)) if len(scores) else []
            if len(final) and self.upstream.RESCORE.VALID:
                rescored = module("utils.rescore").rescore_valid(self.upstream, final, scores)
            else:
                rescored = scores  # as tools/valid.py passes them on
        poses, _ = decode.decode_scales(scales, self.detector.settings, self.skeleton)
        if self.detector.refine is not None and len(poses):
            if len(scales) == 1:
                poses = match_to_heatmap(poses, scales[1.0], self.detector.refine, self.skeleton)
            else:
                poses = match_to_scales(poses, scales, self.detector.refine, self.skeleton)
        joints = len(self.skeleton)
        kept_poses = np.asarray(kept[0]) if len(scores) else np.zeros((0, joints, 3))
        differences.note("kept poses (pixels)", kept_poses[:, :, :2], poses[:, :, :2])
        differences.note("joint scores", kept_poses[:, :, 2], poses[:, :, 2])
        people = self.detector.decode(scales if len(scales) > 1 else scales[1.0], placement)
        final_poses = np.asarray(final).reshape(-1, joints, 3)
        differences.note("final poses (pixels)", final_poses[:, :, :2], people.poses[:, :, :2])
        if self.detector.rescore is not None:
            differences.note("rescored scores", rescored, people.scores)
        self.found.append((entry, people))
        self.found_upstream.append((final, rescored))

    def _compare_scale(
        self, image: np.ndarray, entry: ImageEntry, data: DataSet, scale_factor: float, differences: Differences
    ) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor, Passes]:
        """Compare tensors, maps and candidates of one scale; return upstream's centre, scale and maps, and the maps."""
        placement = self.input_sizes.place(entry.size).scaled(scale_factor)
        warped = preprocess.warp(image, placement.input)
        ours, ours_flipped = preprocess.normalise(warped), preprocess.normalise(preprocess.mirror(warped))
        centre, scale, tensor = self._upstream_tensor(image, placement.input, scale_factor)
        differences.note("tensor", tensor, ours)
        recorder = _Recorder(self.network or self._drawn_maps(entry, data, placement))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            heat, poses_map = module("core.inference").get_multi_stage_outputs(self.upstream, recorder, tensor, True)
        differences.note("flipped tensor", recorder.images[1], ours_flipped)
        if self.graph is not None:
            for image_in, maps in zip((ours, ours_flipped), recorder.maps, strict=True):
                found = self.graph.run(image_in)
                differences.note("heatmap", maps[0], found[0])
                differences.note("offset (cells)", maps[1], found[1])
        passes = Passes(*(Maps(heatmap[0], offset[0]) for heatmap, offset in recorder.maps))
        self._compare_decoding(passes, heat, poses_map, differences)
        return centre, scale, heat, poses_map, passes

    def _upstream_tensor(
        self, image: np.ndarray, input_size: Size, scale_factor: float
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Apply upstream's warp and normalisation; return centre, scale, tensor (1, 3, H, W).

        The input size is upstream's own where ours are exact, and else ours.
        """
        h, w = image.shape[:2]
        rgb, transforms = cv2.cvtColor(image, cv2.COLOR_BGR2RGB), module("utils.transforms")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.MEAN, preprocess.STD))
        if self.input_sizes.exact:
            side = self.upstream.DATASET.INPUT_SIZE
            warped, centre, scale = transforms.resize_align_multi_scale(rgb, side, scale_factor, 1.0)
            return centre, scale, ((torch.from_numpy(warped).permute(2, 0, 1).float().div(255) - mean) / std)[None]
        centre = np.array([int(w / 2.0 + 0.5), int(h / 2.0 + 0.5)])
        source_w = w if w < h else input_size.w / input_size.h * h
        scale = np.array([source_w, source_w * input_size.h / input_size.w]) / 200.0
        matrix = transforms.get_affine_transform(centre, scale, 0, (input_size.w, input_size.h))
        warped = cv2.warpAffine(rgb, matrix, (input_size.w, input_size.h))
        return centre, scale, ((torch.from_numpy(warped).permute(2, 0, 1).float().div(255) - mean) / std)[None]

    def _drawn_maps(
        self, entry: ImageEntry, data: DataSet, placement: Placement
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        drawn = outputs_of(data, entry, Encoding(distort=noisy), self.rng, placement)
        return [(heat[None], offset[None]) for heat, offset in drawn]

    def _compare_decoding(self, passes: Passes, heat: Tensor, poses_map: Tensor, differences: Differences) -> None:
        merged = np.concatenate((merged_joints(passes, self.skeleton), decode.merged_centre(passes)[None]))
        differences.note("merged heatmap", heat[0].numpy(), merged)
        size = passes.original.cells
        joints = decode.joints_at(passes, np.indices(size).reshape(2, -1).T, self.skeleton)
        wanted_joints = STRIDE * poses_map[0].numpy().reshape(2 * len(self.skeleton), -1).T
        differences.note("merged poses (pixels)", wanted_joints, joints.reshape(wanted_joints.shape))
        index, scores = module("core.inference").get_maximum_from_heatmap(self.upstream, heat[0, -1:])
        found, found_scores = decode.find_centres(decode.merged_centre(passes), self.detector.settings)
        wanted = np.column_stack((index.numpy(), scores.numpy()))
        ours = np.column_stack((found[:, 0] * size.w + found[:, 1], found_scores))
        differences.note("candidates", wanted[np.lexsort(wanted.T[::-1])], ours[np.lexsort(ours.T[::-1])])

    def compare_results(self, data: DataSet, differences: Differences) -> None:
        """Compare the result file and the ten metrics, upstream's as its data set class writes and evaluates them.

        CrowdPose's metrics are compared only where its package crowdposetools is installed.

        Args:
            differences: changed in place.
            data: the whole data set, as upstream always evaluates on all images.
        """
        assert data.category is not None
        ours = [result for entry, people in self.found for result in people.to_coco(entry.id, data.category.id)]
        logging.disable(logging.INFO)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            crowd = CROWD in self.upstream.DATASET.DATASET
            source = module("dataset.CrowdPoseDataset" if crowd else "dataset.COCODataset")
            judge = (source.CrowdPoseDataset if crowd else source.CocoDataset)(
                self.upstream, self.upstream.DATASET.TEST
            )
            if source.COCOeval is None:
                judge._do_python_keypoint_eval = lambda *_: [("AP", 0.0)]
            judge.ids = [entry.id for entry, _ in self.found]
            written = Path(folder) / "results" / f"keypoints_{self.upstream.DATASET.TEST}check_results.json"
            poses, scores = (list(column) for column in zip(*self.found_upstream, strict=True))
            figures, _ = judge.evaluate(self.upstream, poses, scores, folder, "check")
            theirs = json.loads(written.read_text(encoding="utf-8"))
        logging.disable(logging.NOTSET)
        differences.note("result file", [_numbers(entry) for entry in theirs], [_numbers(entry) for entry in ours])
        metrics = coco_metrics(data, ours, [image.id for image in data.images])
        if len(figures) == len(metrics):
            differences.note("ten metrics", list(figures.values()), list(metrics.values()))


def _numbers(entry: dict[str, Any]) -> list[float]:
    return [entry["image_id"], entry["category_id"], entry["score"], *entry["keypoints"], *entry["bbox"]]


def padded_network(config: CfgNode, checkpoint: Path) -> nn.Module:
    """Return upstream's network with a checkpoint's weights; a stem narrower than its 64 is padded with zeros.

    Channels of zeros stay zero through convolution, batch norm and ReLU, so the outputs are the same.
    """
    network = upstream_network(config)
    state = read_state(checkpoint)
    for key, wanted in network.state_dict().items():
        narrow = key in state and state[key].shape != wanted.shape
        if narrow and key.startswith(("conv", "bn", "layer1", "transition1")):
            filled = torch.full_like(wanted, float(key.endswith("running_var")))
            filled[tuple(slice(side) for side in state[key].shape)] = state[key]
            state[key] = filled
    network.load_state_dict(state, strict=True)
    return network


def _exported(config: CfgNode, checkpoint: Path, threads: int) -> OnnxRuntime:
    network = build_network(config)
    load_network(network, checkpoint)
    model = build_graph(network)
    onnx.helper.set_model_props(
        model, {"input_sizes": str(configured_sizes(config)), "skeleton": ",".join(skeleton_of(config).joints)}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(to_dialect(model, ONNX).SerializeToString())
        return OnnxRuntime(path, threads)
