"""The rescoring net: docs/reference.md [23] and [24]."""

import numpy as np
import pytest
import torch

from dekr_infer.errors import DekrError
from dekr_infer.pose.rescore import RescoreNet, feature_count, features, load_rescore_net

FROM = (0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7, 8, 11, 11, 12, 13, 14)
TO = (1, 2, 2, 3, 4, 5, 6, 6, 7, 11, 8, 12, 9, 10, 12, 13, 14, 15, 16)


def poses(people: int = 6, spread: float = 80.0) -> np.ndarray:
    rng = np.random.default_rng(people)
    return (rng.normal(size=(people, 17, 3)) * (spread, 2 * spread, 0.5)).astype(np.float32)


def slow_features(pose: np.ndarray) -> list[float]:
    """[23], one pose."""
    differences, lengths = [], []
    for a, b in zip(FROM, TO, strict=True):
        dx, dy = float(pose[a, 0] - pose[b, 0]), float(pose[a, 1] - pose[b, 1])
        differences += [dx, dy]
        lengths.append((dx * dx + dy * dy) ** 0.5)
    torso = max((lengths[9] + lengths[11]) / 2, 1)
    return [d / torso for d in differences] + [n / torso for n in lengths] + [float(score) for score in pose[:, 2]]


def state(hidden: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = {"l1": (74, hidden), "l2": (hidden, hidden), "l3": (hidden, 1)}
    return torch.nn.ModuleDict({name: torch.nn.Linear(*shape) for name, shape in shapes.items()}).state_dict()


def test_the_74_features_are_differences_lengths_and_scores():
    people = poses()
    found = features(people)
    assert found.shape == (6, 74) and found.dtype == np.float32 and feature_count() == 74
    np.testing.assert_allclose(found, [slow_features(pose) for pose in people], rtol=1e-5, atol=1e-6)


def test_the_torso_pairs_are_shoulder_to_hip():
    assert [(FROM[9], TO[9]), (FROM[11], TO[11])] == [(5, 11), (6, 12)]
    pose = np.zeros((1, 17, 3), np.float32)
    pose[0, 5, 1], pose[0, 6, 1], pose[0, 0, 0] = 10, 30, 100  # torso lengths 10 and 30, the nose 100 to the right
    pose[0, (7, 8), 0] = 500  # the elbows are far away and do not count
    found = features(pose)[0]
    assert found[0] == 100 / 20 and found[38] == 100 / 20
    assert found[2 * 9 + 1] == 10 / 20 and found[38 + 11] == 30 / 20


def test_a_torso_shorter_than_a_pixel_counts_as_one():
    pose = np.zeros((1, 17, 3), np.float32)
    pose[0, 5, 1], pose[0, 0, 0] = 0.5, 40
    assert features(pose)[0, 0] == 40
    np.testing.assert_allclose(features(poses(3, 0.01)), [slow_features(p) for p in poses(3, 0.01)], rtol=1e-5)


def test_the_net_is_three_linear_layers_with_relu_between(tmp_path):
    torch.save(state(), tmp_path / "r.pth")
    net = load_rescore_net(tmp_path / "r.pth", hidden=12)
    weights = state()
    values = torch.from_numpy(features(poses()))
    for name in ("l1", "l2", "l3"):
        values = values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        if name != "l3":
            values = values.clamp(min=0)
    found = net(poses())
    assert found.shape == (6,) and found.dtype == np.float32
    np.testing.assert_allclose(found, values[:, 0], atol=1e-6)


def test_a_factor_may_be_negative_and_nan_becomes_0():
    weights = tuple(np.zeros(shape, np.float32) for shape in ((5, 74), (5, 5), (1, 5)))
    biases = (np.ones(5, np.float32), np.ones(5, np.float32), np.array([-0.25], np.float32))
    people = poses(2)
    net = RescoreNet(weights, biases)
    assert net(people).tolist() == [-0.25, -0.25]
    people[1, 3, 0] = np.nan
    assert net(people).tolist() == [-0.25, 0]


def test_nobody_has_no_factors(tmp_path):
    torch.save(state(), tmp_path / "r.pth")
    assert load_rescore_net(tmp_path / "r.pth", 12)(np.zeros((0, 17, 3), np.float32)).shape == (0,)


def test_a_checkpoint_of_a_data_parallel_run_loads(tmp_path):
    torch.save({f"module.{key}": value for key, value in state().items()}, tmp_path / "r.pth")
    torch.save(state(), tmp_path / "s.pth")
    one, other = (load_rescore_net(tmp_path / name, 12) for name in ("r.pth", "s.pth"))
    np.testing.assert_array_equal(one(poses()), other(poses()))


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state().items() if name != key}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (without("l2.bias"), r"l2\.bias"),
        (state() | {"l4.bias": torch.zeros(1)}, r"l4\.bias"),
        (state() | {"l1.weight": torch.zeros(12, 73)}, r"l1\.weight"),
        ({}, "holds no state dict"),
    ],
    ids=["a key is missing", "a key too many", "another shape", "empty"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_key_named(tmp_path, content, part):
    torch.save(content, tmp_path / "r.pth")
    with pytest.raises(DekrError, match=rf"r\.pth: .*{part}"):
        load_rescore_net(tmp_path / "r.pth", 12)


def test_weights_beyond_all_bounds_are_refused(tmp_path):
    content = state()
    content["l2.weight"][3, 4] = -1e6
    torch.save(content, tmp_path / "r.pth")
    load_rescore_net(tmp_path / "r.pth", 12)
    content["l2.weight"][3, 4] = -1.1e6
    torch.save(content, tmp_path / "r.pth")
    with pytest.raises(DekrError, match=r"r\.pth: holds weights beyond all bounds"):
        load_rescore_net(tmp_path / "r.pth", 12)


def test_another_width_a_torn_file_and_no_file_are_refused(tmp_path):
    torch.save(state(13), tmp_path / "r.pth")
    with pytest.raises(DekrError, match=r"have 13 neurons, RESCORE.HIDDEN_LAYER says 12; add RESCORE.HIDDEN_LAYER 13"):
        load_rescore_net(tmp_path / "r.pth", 12)
    (tmp_path / "torn.pth").write_bytes((tmp_path / "r.pth").read_bytes()[:700])
    (tmp_path / "text.pth").write_text("hello")
    for name in ("torn.pth", "text.pth", "none.pth"):
        with pytest.raises(DekrError, match=name):
            load_rescore_net(tmp_path / name, 12)
