"""The demo's training: targets, losses, the grouped network, crops and resuming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dekr_infer.config.load import load_config
from dekr_infer.geometry import Size
from dekr_infer.model.deform import deform_conv2d
from dekr_infer.model.head import build_network
from dekr_infer.pose.preprocess import normalise
from dekr_infer.pose.rescore import layer_shapes
from dekr_infer.skeleton import COCO_17
from scripts.demo.drawing.scene import draw_scene
from scripts.demo.train_rescore import fit, mirrored, similarity
from scripts.demo.training import adaptive_conv, targets
from scripts.demo.training.dataset import CROPS, Crop, crop_affine, make_batch, transform_joints
from scripts.demo.training.grouped import GroupedNet, checkpoint_state, grouped_state
from scripts.demo.training.in_memory_eval import GroupedBackend
from scripts.demo.training.losses import heat_loss, offset_loss, total_loss
from scripts.demo.training.schedule import Length, WeightAverage, rate
from scripts.demo.training.trainer import STATE, Trainer, TrainingOptions, train
from scripts.demo.training.widen_channels import widened

DEMO = Path(__file__).parents[2] / "dekr_infer/config/demo.yaml"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: on tensors this small, several threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def people(seed: int, count: int, h: int, w: int) -> np.ndarray:
    """Joints (count, 17, 3) in cells around random places, some outside the map, some without label."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(0, (w, h), (count, 1, 2))
    joints = middle + rng.normal(0, rng.uniform(1, 6, (count, 1, 1)), (count, 17, 2))
    return np.concatenate([joints, rng.integers(0, 3, (count, 17, 1))], -1)


@pytest.mark.parametrize("seed", range(4))
def test_heat_targets_equal_nested_loops(seed: int) -> None:
    h, w = 24, 37
    joints = targets.keep_inside(people(seed, 3, h, w), h, w)
    heat, foreground = targets.heat_targets(joints, h, w)
    slow, near = np.zeros((18, h, w)), np.zeros((18, h, w), bool)
    for person in joints:
        labelled = [(j, x, y) for j, (x, y, v) in enumerate(person) if v > 0]
        centre = np.mean([(x, y) for _, x, y in labelled], axis=0)
        for channel, x, y in [*labelled, (17, *centre)]:
            sigma = 4 if channel == 17 else 2
            for row in range(h):
                for column in range(w):
                    if abs(row - y) <= 3 * sigma and abs(column - x) <= 3 * sigma:
                        value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                        slow[channel, row, column] = max(slow[channel, row, column], value)
                        near[channel, row, column] = True
    assert heat == pytest.approx(slow, abs=1e-6)
    assert (foreground == near).all()


@pytest.mark.parametrize("seed", range(4))
def test_offset_targets_equal_nested_loops(seed: int) -> None:
    h, w = 20, 33
    joints = targets.keep_inside(people(seed, 5, h, w), h, w)
    got = targets.offset_targets(joints, h, w)
    expected = {}
    for row in range(h):
        for column in range(w):
            best = None
            for person in joints:
                at = person[person[:, 2] > 0, :2]
                x, y = at.mean(0)
                area = max(float(((at.max(0) - at.min(0)) ** 2).sum()), 16.0)
                mine = int(max(x - 4, 0)) <= column < int(x + 4) and int(max(y - 4, 0)) <= row < int(y + 4)
                if mine and (best is None or area < best[0]):
                    best = area, person
            if best is not None:
                expected[row * w + column] = best
    assert got.cells.tolist() == sorted(expected)
    for cell, offset, weight in zip(*got, strict=True):
        area, person = expected[cell]
        for joint, (x, y, v) in enumerate(person):
            wanted = (cell % w - x, cell // w - y) if v > 0 else (0, 0)
            assert offset[joint] == pytest.approx(wanted, abs=1e-5)
            assert weight[joint] == pytest.approx(area**-0.5 if v > 0 else 0)


def test_an_empty_image_has_no_targets() -> None:
    nobody = np.zeros((0, 17, 3))
    heat, foreground = targets.heat_targets(nobody, 8, 8)
    assert not heat.any() and not foreground.any()
    assert len(targets.offset_targets(nobody, 8, 8).cells) == 0


def test_losses_equal_hand_calculation() -> None:
    heat, wanted = torch.tensor([[0.5, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    foreground = torch.tensor([[True, True], [False, False]])
    assert float(heat_loss(heat, wanted, foreground)) == pytest.approx((0.25 + 0 + 0.1 * 1 + 0.1 * 4) / 4)
    offset, wanted = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 0.05], [0.0, 0.0]]])
    weight = torch.tensor([[0.5, 0.0]])  # the second joint is not labelled
    by_hand = 0.5 * ((1 - 1 / 18) + 0.5 * 0.05**2 * 9) / 2
    assert float(offset_loss(offset, wanted, weight)) == pytest.approx(by_hand)
    assert float(offset_loss(offset, wanted, 0 * weight)) == 0
    assert float(total_loss(torch.tensor(2.0), torch.tensor(10.0))) == pytest.approx(2.3)


@pytest.mark.parametrize("compiled", [True, False])
def test_adaptive_conv_equals_deform_conv2d(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled and adaptive_conv.compiled(4) is None:
        pytest.skip("no C compiler here")
    if not compiled:
        monkeypatch.setattr(adaptive_conv, "compiled", lambda channels: None)
    n, h, w, joints, channels = 2, 5, 7, 3, 4
    generator = torch.Generator().manual_seed(5)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).requires_grad_()

    maps, shape, weight = random(n, h, w, joints, channels), random(n * h * w, joints, 6), random(joints, 4, 4, 3, 3)
    cells = torch.randperm(n * h * w, generator=generator)[:30].sort().values
    near = shape[cells]
    out = adaptive_conv.adaptive_conv(maps, near, weight, cells)
    taps = torch.tensor([[-1.0, -1, -1, 0, 0, 0, 1, 1, 1], [-1, 0, 1, -1, 0, 1, -1, 0, 1]])
    expected = []
    for joint in range(joints):
        matrix, move = shape[:, joint, :4].view(-1, 2, 2), shape[:, joint, 4:, None]
        kernel_offset = (matrix @ taps - taps + move).view(n, h, w, 2, 9).permute(0, 4, 3, 1, 2).reshape(n, 18, h, w)
        dense = deform_conv2d(maps[..., joint, :].permute(0, 3, 1, 2), kernel_offset, weight[joint])
        expected.append(dense.permute(0, 2, 3, 1).reshape(-1, channels)[cells])
    wanted = torch.stack(expected, 1)
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)
    given = random(*out.shape)
    inputs = (maps, shape, weight)
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, given), torch.autograd.grad(wanted, inputs, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_grouped_network_equals_per_joint_network() -> None:
    config = load_config(DEMO)
    torch.manual_seed(3)
    grouped = GroupedNet(config.MODEL.SPEC)
    for name, value in grouped.state_dict().items():
        if name.startswith(("adaptive", "final")) and value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    network = build_network(config)
    network.load_state_dict(checkpoint_state(grouped.state_dict()), strict=True)
    for name, value in grouped_state(network.state_dict()).items():
        torch.testing.assert_close(value, grouped.state_dict()[name], msg=name)
    image, (h, w) = torch.randn(2, 3, 64, 96), (16, 24)
    cells = torch.randperm(2 * h * w)[:50].sort().values
    with torch.no_grad():
        heat, offset = network(image)
        ours = grouped.eval()(image, cells)
    torch.testing.assert_close(ours[0], heat)
    torch.testing.assert_close(ours[1], offset.permute(0, 2, 3, 1).reshape(-1, 17, 2)[cells], atol=1e-4, rtol=1e-4)


def test_checkpoint_is_small() -> None:
    state = build_network(load_config(DEMO)).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 7.5e6


@pytest.mark.parametrize("seed", range(6))
def test_crops_transform_joints_like_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, Size(120, 120), people=2)
    affine = crop_affine(rng, scene, CROPS[0])
    corners = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    joints = np.zeros((1, 17, 3))
    joints[0, 5:8, :2] = corners
    moved = transform_joints(joints, affine)[0]
    mirrored = np.linalg.det(affine[:, :2]) < 0
    order = [COCO_17.partners[j] for j in (5, 6, 7)] if mirrored else [5, 6, 7]
    assert moved[order, :2] == pytest.approx(corners @ affine[:, :2].T + affine[:, 2])


def test_batches_repeat() -> None:
    crop = Crop(64, 2, 2, (0.5, 0.9), 1.0)
    first, again, other = (make_batch(seed, crop) for seed in ((1, 0, 7), (1, 0, 7), (1, 1, 7)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == (4, 64, 64, 3) and first.heat.shape == (4, 18, 16, 16)
    assert int(first.cells.max()) < 4 * 16 * 16 and (first.cells.diff() > 0).all()


def test_learning_rate_progress_and_average() -> None:
    assert rate(0.03) == 1 and rate(0.5) > rate(0.6) and rate(2.0) == pytest.approx(0.01)
    assert Length(steps=10).progress(5, 1e9) == 0.5 and Length(minutes=2.0).progress(7, 60.0) == 0.5
    average = WeightAverage({"w": torch.zeros(1)}, decay=0.5)
    for step in (1, 2):
        average.update({"w": torch.ones(1)}, step)
    assert float(average.state["w"]) == pytest.approx(1 - (1 / 11) * (2 / 12))


def few_steps(output: Path) -> TrainingOptions:
    """Three steps on small images."""
    return TrainingOptions(
        cfg=str(DEMO),
        output=output,
        length=Length(steps=3),
        seed=4,
        processes=1,
        device="cpu",
        precision="fp32",
        lr=1e-3,
        resume=True,
        crop=Crop(64, 1, 2, (0.4, 0.6), 1.0),
        validation_batches=0,
    )


def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    def run(folder: str, stop_after: int | None) -> dict[str, torch.Tensor]:
        options = replace(few_steps(tmp_path / folder), stop_after=stop_after)
        train(0, options, "")
        state = torch.load(options.output / STATE, weights_only=True)
        return {f"{part}.{key}": value for part in ("network", "average") for key, value in state[part].items()}

    whole = run("whole", None)
    run("parts", 1)
    parts = run("parts", None)
    assert int(whole["network.bn1.num_batches_tracked"]) == 3
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def random_network(channels: int) -> GroupedNet:
    """The demo network with `channels` channels for every joint, in which every weight has an effect."""
    torch.manual_seed(channels)
    network = GroupedNet(load_config(DEMO, ["MODEL.SPEC.HEAD_OFFSET.NUM_CHANNELS_PERKPT", str(channels)]).MODEL.SPEC)
    for key, value in network.state_dict().items():
        if key.startswith(("transition_offset.1", "adaptive.bn")) and value.dim():
            value.uniform_(0.5, 1.5)
    return network.eval()


def test_a_widened_network_has_equal_outputs_and_gradients_in_new_channels() -> None:
    narrow, wide = random_network(2), random_network(4)
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    image, cells = torch.randn(1, 3, 64, 96), torch.arange(16 * 24)
    with torch.no_grad():
        before, after = narrow(image, cells), wide(image, cells)
    torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
    torch.testing.assert_close(after[1], before[1], atol=1e-4, rtol=0)
    wide(image, cells)[1].square().mean().backward()
    assert wide.final_weight.grad is not None and wide.final_weight.grad[..., 2:].any()


def test_only_a_narrower_head_can_be_widened() -> None:
    fresh = random_network(2).state_dict()
    with pytest.raises(RuntimeError, match="length must be non-negative"):
        widened(random_network(4).state_dict(), fresh)
    with pytest.raises(KeyError, match="stranger"):
        widened(fresh | {"stranger": torch.zeros(1)}, fresh)
    with pytest.raises(RuntimeError, match="size"):
        widened(fresh | {"conv1.weight": torch.zeros(8, 3, 3, 3)}, fresh)


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    given = random_network(16)
    torch.save(checkpoint_state(given.state_dict()), tmp_path / "given.pth")
    trainer = Trainer(replace(few_steps(tmp_path), init=tmp_path / "given.pth"), 0)
    for key, value in given.state_dict().items():
        torch.testing.assert_close(trainer.network.state_dict()[key], value, msg=key)
        torch.testing.assert_close(trainer.average.state[key], value, msg=key)


def test_in_memory_outputs_equal_the_networks() -> None:
    config = load_config(DEMO)
    torch.manual_seed(8)
    grouped = GroupedNet(config.MODEL.SPEC).eval()
    network = build_network(config)
    network.load_state_dict(checkpoint_state(grouped.state_dict()))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with torch.no_grad():
        heat, offset = network(torch.from_numpy(normalise(image)))
    ours = GroupedBackend(grouped).run(image)
    np.testing.assert_allclose(ours[0], heat[0], atol=1e-5)
    np.testing.assert_allclose(ours[1], offset[0], atol=1e-4)


def test_similarity_equals_cocoevals_oks() -> None:
    rng = np.random.default_rng(2)
    joints = np.concatenate([rng.uniform(0, 90, (3, 17, 2)), rng.integers(0, 3, (3, 17, 1))], -1)
    poses = joints[[2, 0, 1, 1]] + rng.normal(0, 4, (4, 17, 3))
    areas = np.array([900.0, 2500.0, 400.0])
    truth, found = COCO(), COCO()
    entry = {"image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
    common = {"images": [{"id": 1}], "categories": [{"id": 1}]}
    truth.dataset = common | {
        "annotations": [
            entry | {"id": i + 1, "area": areas[i], "keypoints": at.ravel().tolist(), "num_keypoints": 1}
            for i, at in enumerate(joints)
        ]
    }
    found.dataset = common | {
        "annotations": [
            entry | {"id": i + 1, "area": 1.0, "score": -i, "keypoints": at.ravel().tolist()}
            for i, at in enumerate(poses)
        ]
    }
    for side in (truth, found):
        side.createIndex()
    judge = COCOeval(truth, found, "keypoints")
    judge._prepare()
    np.testing.assert_allclose(similarity(poses, joints, areas), judge.computeOks(1, 1), rtol=1e-9)
    assert similarity(poses, joints[:0], areas[:0]).shape == (4, 0)


def test_rescoring_learns_from_features() -> None:
    rng = np.random.default_rng(6)
    poses = rng.normal(0, 30, (400, 17, 3)).astype(np.float32)
    poses[..., 2] = rng.uniform(0, 1, (400, 1))
    net, summary = fit(poses, poses[:, 0, 2].astype(float), epochs=20, seed=1)
    assert {key: tuple(value.shape[::-1]) for key, value in net.state_dict().items() if "weight" in key} == {
        f"{name}.weight": shape for name, shape in layer_shapes(256).items()
    }
    error, spread = (float(word.strip(",")) for word in summary.split() if word.strip(",").startswith("0."))
    assert error < 0.5 * spread
    np.testing.assert_array_equal(mirrored(mirrored(poses)), poses)
