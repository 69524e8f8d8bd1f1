"""Random checkpoints: the official layout, seeded, and well enough behaved to rehearse every command with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dekr_infer.cli import random_checkpoint
from dekr_infer.geometry import Size
from dekr_infer.model.blocks import AdaptBlock
from dekr_infer.model.checkpoint import load_network, read_state
from dekr_infer.model.head import build_network
from dekr_infer.model.random_weights import cloudy_image
from dekr_infer.pose.preprocess import normalise
from dekr_infer.pose.rescore import layer_shapes
from tests.support import corruption as spoil
from tests.support.tiny_models import PAIRS

pytestmark = pytest.mark.usefixtures("one_thread")


def make(folder: Path, *flags: str) -> int:
    paths = ("--output", str(folder / "net.pth"), "--output_rescore", str(folder / "rescore.pth"))
    return random_checkpoint.main([*paths, *flags, *PAIRS])


def same(a: Path, b: Path) -> bool:
    first, second = read_state(a), read_state(b)
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    torch.rand(7)  # what was drawn before does not matter
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert make(tmp_path / name, "--seed", seed) == 0
    for file in ("net.pth", "rescore.pth"):
        assert same(tmp_path / "a" / file, tmp_path / "b" / file)
        assert not same(tmp_path / "a" / file, tmp_path / "c" / file)


def test_existing_files_are_kept_without_overwrite(tmp_path, capsys):
    (tmp_path / "rescore.pth").write_bytes(b"trained for weeks")
    assert make(tmp_path) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'rescore.pth'}: exists; name another file") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rescore.pth"]
    assert (tmp_path / "rescore.pth").read_bytes() == b"trained for weeks"
    assert make(tmp_path, "--overwrite") == 0
    read_state(tmp_path / "rescore.pth")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys):
    disk = tmp_path / "disk"
    spoil.mount(disk, "size=100k")
    try:
        assert make(disk) == 1
        err = capsys.readouterr().err
        assert err == f"error: {disk / 'net.pth'}: the disk is full; free some space and run the same command again\n"
        assert list(disk.iterdir()) == []
    finally:
        spoil.unmount(disk)


def test_the_rescoring_net_has_the_official_keys_and_shapes(tmp_path):
    assert make(tmp_path) == 0
    found = {key: tuple(value.shape) for key, value in read_state(tmp_path / "rescore.pth").items()}
    assert found == {
        "l1.weight": (256, 74),
        "l1.bias": (256,),
        "l2.weight": (256, 256),
        "l2.bias": (256,),
        "l3.weight": (1, 256),
        "l3.bias": (1,),
    }
    assert set(layer_shapes(256)) == {"l1", "l2", "l3"}


def test_it_loads_strictly_and_the_batch_norms_are_calibrated(tiny):
    load_network(build_network(tiny.config), tiny.checkpoint)
    state = read_state(tiny.checkpoint)
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    assert means and all(mean.any() for mean in means)
    assert all((value > 0).all() for key, value in state.items() if key.endswith("running_var"))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """An image that the statistics do not come from, in another size."""
    return torch.from_numpy(normalise(cloudy_image(np.random.default_rng(99), Size(128, 192))))


def test_calibration_images_vary_most_in_coarse_structures():
    image = cloudy_image(np.random.default_rng(3), Size(64, 96)).astype(float)
    blocks = image.reshape(8, 8, 12, 8, 3).mean((1, 3))
    assert image.shape == (64, 96, 3) and image.std() > 40
    assert blocks.std() > 0.5 * image.std(), "flat noise would keep an eighth"


def test_activations_stay_of_order_one(tiny, image):
    seen: list[float] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.std().item()))
        for module in tiny.network.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        heatmap, offset = tiny.network(image)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(handles) and min(seen) > 0.03 and max(seen) < 5
    assert 0.03 < heatmap.std() < 0.5 and heatmap[0, 17].max() > 0.05, "the centre map has peaks"
    assert 2 < offset.std() < 20, "cells: joints lie about as far as in people"


def test_the_taps_of_every_block_move_by_about_one_or_two_cells(tiny, image):
    spreads: list[float] = []
    blocks = [module for module in tiny.network.modules() if isinstance(module, AdaptBlock)]
    handles = [
        block.register_forward_hook(
            lambda block, inputs, _out: spreads.append(block.kernel_offset(inputs[0]).std().item())
        )
        for block in blocks
    ]
    with torch.inference_mode():
        tiny.network(image)
    for handle in handles:
        handle.remove()
    assert len(spreads) == 34
    assert min(spreads) > 0.3 and max(spreads) < 3
    assert 0.7 < sum(spreads) / 34 < 2
