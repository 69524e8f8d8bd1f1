"""Our code against recorded outputs of upstream's, which `tests/golden/record.py` made; upstream is not needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.data.coco import load_data_set
from dekr_infer.evaluation.coco_metrics import METRICS, coco_metrics
from dekr_infer.geometry import PUBLISHED_SIZES, Placement, Size
from dekr_infer.pose import preprocess
from dekr_infer.pose.decode import decode, decode_scales, transform_poses
from dekr_infer.pose.refine import match_to_heatmap, match_to_scales
from dekr_infer.pose.rescore import RescoreNet, layer_shapes
from dekr_infer.structures import Passes, People
from tests.golden import cases, ground_truth
from tests.support.coco_files import write_annotation
from tests.support.recipe import DECODE, REFINE, passes_of

GOLDEN = Path(__file__).resolve().parent / "golden"
PICTURES = dict(np.load(GOLDEN / "pictures.npz"))
DECODING = dict(np.load(GOLDEN / "decoding.npz"))
AT_SCALES = dict(np.load(GOLDEN / "scales.npz"))
MAPS = cases.map_cases()
INPUT_SIZE = Size(cases.MAP.h * 4, cases.MAP.w * 4)
CASES = pytest.mark.parametrize(
    ("name", "flip"), [pytest.param(n, f, id=f"{n}-{f}") for n in MAPS for f in ("flip", "single") if n != "no size"]
)


def passes(name: str, flip: str) -> Passes:
    maps = MAPS[name]
    return passes_of(*maps) if flip == "flip" else passes_of(maps.heat, maps.offset)


@pytest.mark.parametrize("size", cases.PICTURE_SIZES, ids=str)
def test_input_size_and_both_tensors_are_upstreams_to_the_bit(size):
    input_size, plain, flipped = PICTURES[f"{size.h}x{size.w}"]
    assert f"{PUBLISHED_SIZES.place(size).input.h}x{PUBLISHED_SIZES.place(size).input.w}" == input_size
    warped = preprocess.warp(cases.picture(size), PUBLISHED_SIZES.place(size).input)
    for pixels, digest in ((warped, plain), (preprocess.mirror(warped), flipped)):
        assert hashlib.sha256(preprocess.normalise(pixels).tobytes()).hexdigest() == digest


def test_the_tiny_network_has_upstreams_keys_and_outputs():
    torch = pytest.importorskip("torch")
    from dekr_infer.config.load import load_config
    from dekr_infer.model.head import build_network

    recorded = np.load(GOLDEN / "network.npz")
    network = build_network(load_config(None, [word for pair in cases.TINY for word in pair]))
    state = network.state_dict()
    assert list(state) == recorded["keys"].tolist()
    values = cases.weights({key: tuple(value.shape) for key, value in state.items()})
    network.load_state_dict({key: torch.from_numpy(values[key]) if key in values else state[key] for key in state})
    with torch.inference_mode():
        heat, offset = network(torch.from_numpy(cases.network_input()))
    for found, name in ((heat, "heat"), (offset, "offset")):
        scale = np.abs(recorded[name]).max()
        np.testing.assert_allclose(found.numpy(), recorded[name], rtol=0, atol=2e-5 * scale)


@CASES
def test_the_same_people_are_kept_in_the_same_order(name, flip):
    poses, scores = decode(passes(name, flip), DECODE)
    kept = DECODING[f"{name}/{flip}/kept"]
    assert poses.shape == kept.shape
    np.testing.assert_allclose(poses[:, :, :2], kept[:, :, :2], rtol=0, atol=1e-3)
    np.testing.assert_allclose(poses[:, :, 2], kept[:, :, 2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores, DECODING[f"{name}/{flip}/scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", [key.removesuffix("/final") for key in DECODING if key.endswith("/final")])
def test_final_poses_and_rescored_scores_are_upstreams(key):
    poses, scores = decode(passes(*key.split("/")), DECODE)
    final = transform_poses(poses, Placement(cases.IMAGE, INPUT_SIZE).to_image)
    np.testing.assert_allclose(final, DECODING[f"{key}/final"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(rescore_net()(final) * scores, DECODING[f"{key}/rescored"], rtol=0, atol=1e-5)


def rescore_net() -> RescoreNet:
    shapes = {name: shape[::-1] for name, shape in layer_shapes(256).items()}
    names = {f"{k}.weight": v for k, v in shapes.items()} | {f"{k}.bias": v[:1] for k, v in shapes.items()}
    values = cases.weights(names)
    return RescoreNet(*(tuple(values[f"{name}.{kind}"] for name in shapes) for kind in ("weight", "bias")))


@pytest.mark.parametrize("flip", ["flip", "single"])
def test_matched_joints_are_upstreams(flip):
    kept = DECODING[f"hills/{flip}/kept"]
    found = match_to_heatmap(kept, passes("hills", flip), REFINE)
    np.testing.assert_allclose(found, DECODING[f"hills/{flip}/matched"], rtol=0, atol=1e-2)
    assert (np.abs(found - kept)[:, :, :2].max(2) > 0.1).mean() > 0.5  # most joints do move


@pytest.mark.parametrize("key", [key.removesuffix("/kept") for key in AT_SCALES if key.endswith("/kept")])
def test_people_of_several_scales_are_upstreams(key):
    name, flip = key.split("/")
    scales = {
        scale: passes_of(*maps) if flip == "flip" else passes_of(maps.heat, maps.offset)
        for scale, maps in cases.scale_cases()[name].items()
    }
    poses, scores = decode_scales(scales, replace(DECODE, decrease=0.9))
    kept = AT_SCALES[f"{key}/kept"]
    assert poses.shape == kept.shape and len(kept) > 1
    np.testing.assert_allclose(poses[:, :, :2], kept[:, :, :2], rtol=0, atol=1e-3)
    np.testing.assert_allclose(poses[:, :, 2], kept[:, :, 2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores, AT_SCALES[f"{key}/scores"], rtol=0, atol=1e-6)
    if name == "hills":
        found = match_to_scales(kept, scales, REFINE)
        np.testing.assert_allclose(found, AT_SCALES[f"{key}/matched"], rtol=0, atol=1e-2)


def test_a_pose_without_size_stays_where_upstream_fails():
    poses, _ = decode(passes("no size", "single"), DECODE)
    assert len(poses) == 3
    extents = np.ptp(poses[:, :, :2], axis=1).max(1)
    assert sorted(extents < 1.5) == [False, True, True]


def test_the_ten_metrics_of_the_golden_images_are_the_recorded_ones(tmp_path):
    """Recorded from upstream's decodings by `python3 tests/golden/record_metrics.py`."""
    image_ids = list(range(1000, 1000 - len(ground_truth.KEYS), -1))
    write_annotation(tmp_path, ground_truth.IMAGES, ground_truth.people(DECODING, image_ids))
    data, rescore, results = load_data_set(tmp_path, "val2017"), rescore_net(), []
    for image_id, key in zip(image_ids, ground_truth.KEYS, strict=True):
        poses, scores = decode(passes(*key.split("/")), DECODE)
        final = transform_poses(poses, Placement(cases.IMAGE, INPUT_SIZE).to_image)
        results += People(final, rescore(final) * scores).to_coco(image_id, 1)
    recorded = json.loads((GOLDEN / "metrics.json").read_text())
    assert all(0 < value < 1 for value in recorded)
    found = coco_metrics(data, results, image_ids)
    assert found == pytest.approx(dict(zip(METRICS, recorded, strict=True)), rel=0, abs=1e-12)
