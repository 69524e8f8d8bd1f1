"""Checkpoints load strictly and safely: what does not fit is named, and no pickled code runs."""

import errno
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dekr_infer.config.load import load_config
from dekr_infer.errors import DekrError
from dekr_infer.model.checkpoint import load_network, read_state, save
from dekr_infer.model.head import build_network
from tests.support.commands import error_of
from tests.support.tiny_models import PAIRS


class Inner(nn.Module):
    """Has a part called `module`, so that the word also occurs inside keys."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.module = nn.BatchNorm2d(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Inner()
        self.last = nn.Linear(3, 1)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


def filled(net: nn.Module) -> dict[str, torch.Tensor]:
    """A state of the network's form in which no two values are equal."""
    state, start = {}, 1
    for key, value in net.state_dict().items():
        state[key] = torch.arange(start, start + value.numel()).view(value.shape).to(value)
        start += value.numel()
    return state


def refused(net: nn.Module, path: Path) -> str:
    """The one line with which a file is refused; the network stays as it was."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    message = error_of(load_network, net, path)
    assert message.startswith(f"{path}: ")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return message


def assert_loaded(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_what_is_saved_comes_back_and_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.pth"
    save({"weight": torch.arange(5)}, path)
    assert torch.equal(read_state(path)["weight"], torch.arange(5))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DekrError, match=r"a\.pth: the disk is full"):
        save({"weight": torch.arange(6)}, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_plain_state_dict_is_loaded_to_the_last_value(net, file):
    state = filled(net)
    torch.save(state, file)
    load_network(net, file)
    assert_loaded(net, state)


def test_a_data_parallel_state_loses_its_prefix_once_and_only_in_front(net, file):
    state = filled(net)
    assert any(".module." in key for key in state)
    torch.save(nn.DataParallel(net).state_dict() | {f"module.{key}": value for key, value in state.items()}, file)
    assert set(read_state(file)) == set(state), "a key with module. inside keeps it"
    load_network(net, file)
    assert_loaded(net, state)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s, "best": 0.5}])
def test_a_state_among_other_things_is_found(net, file, wrap):
    state = filled(net)
    torch.save(wrap(state), file)
    load_network(net, file)
    assert_loaded(net, state)


def test_upstreams_training_checkpoint_is_taken_though_its_model_is_a_name(net, file):
    state = filled(net)
    best = {key: value + 1 for key, value in state.items()}
    torch.save({"epoch": 3, "model": "hrnet_dekr", "state_dict": state, "best_state_dict": best, "perf": 0.6}, file)
    load_network(net, file)
    assert_loaded(net, state)


def test_a_missing_key_is_named(net, file):
    state = filled(net)
    del state["part.module.running_mean"]
    torch.save(state, file)
    assert "1 missing (part.module.running_mean)" in refused(net, file)


def test_an_unexpected_key_is_named(net, file):
    torch.save(filled(net) | {"part.third.weight": torch.ones(1)}, file)
    assert "1 unexpected (part.third.weight)" in refused(net, file)


def test_an_ill_shaped_key_is_named_with_both_shapes(net, file):
    torch.save(filled(net) | {"last.weight": torch.ones(3, 1)}, file)
    assert "1 ill-shaped (last.weight: (3, 1) instead of (1, 3))" in refused(net, file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_key_that_is_not_finite_is_named(net, file, value):
    state = filled(net)
    state["part.first.bias"][1] = value
    torch.save(state, file)
    assert "1 not finite (part.first.bias)" in refused(net, file)


def test_several_kinds_of_mistakes_come_in_one_line_and_many_keys_are_counted(net, file):
    state = {f"other.{key}": value for key, value in filled(net).items()}
    torch.save(state, file)
    message = refused(net, file)
    assert f"{len(state)} missing (part.first.weight, part.first.bias, part.module.weight and 6 more)" in message
    assert f"{len(state)} unexpected (other.part.first.weight" in message


def test_a_missing_file_is_named(net, file):
    assert "no such checkpoint" in refused(net, file)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -200])
def test_a_file_cut_short_is_named(net, file, keep):
    torch.save(filled(net), file)
    file.write_bytes(file.read_bytes()[:keep])
    assert "download it again, or save it" in refused(net, file)


def test_a_file_that_is_no_checkpoint_is_called_damaged(net, file):
    file.write_text("<html>404 not found</html>")
    assert "damaged or no checkpoint" in refused(net, file)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(net, file, tmp_path, save):
    target = tmp_path / "sprung"
    save(filled(net) | {"last.bias": Trap(target)}, file)
    assert "more than weights" in refused(net, file)
    assert not target.exists()
    if save is torch.save:
        torch.load(file, weights_only=False)
        assert target.exists(), "the trap works"


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": 1}, torch.ones(3), {"state_dict": {"a": "b"}}])
def test_what_is_no_state_dict_is_named(net, file, value):
    torch.save(value, file)
    assert "holds no state dict" in refused(net, file)


def test_an_ordered_dict_and_half_precision_are_taken(net, file):
    state = filled(net)
    torch.save(OrderedDict((key, value.half()) for key, value in state.items()), file)
    load_network(net, file)
    assert_loaded(net, state)


ODD = {
    "meta": torch.zeros(3, device="meta"),
    "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "sparse": torch.eye(3).to_sparse(),
    "complex": torch.zeros(3, dtype=torch.complex64),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_is_no_dense_array_of_real_numbers_is_named(net, file, kind):
    torch.save(filled(net) | {"last.weight": ODD[kind]}, file)
    assert "1 entries are not of plain numbers (last.weight); save a state_dict() of dense" in refused(net, file)


def test_weights_that_repeat_one_number_are_measured_before_they_are_written_out(net, file):
    torch.save(filled(net) | {"last.weight": torch.zeros(1).expand(10**10)}, file)
    assert "1 ill-shaped (last.weight: (10000000000,) instead of (1, 3))" in refused(net, file)


def packed_pickle(net: nn.Module, file: Path) -> None:
    """Gigabytes of a text in a packed member of a checkpoint of 3 MB."""
    torch.save(filled(net), file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data if not name.endswith("data.pkl") else b"\x80\x02X\xff\xff\xff\x7f")
                for _ in range(64 if name.endswith("data.pkl") else 0):
                    member.write(bytes(1 << 24))


def announced_storage(net: nn.Module, file: Path) -> None:
    """A file of torch before 1.6 whose storage announces gigabytes."""
    torch.save({"last.weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    assert data.count(b"K\x03Nt") == 1
    file.write_bytes(data.replace(b"K\x03Nt", b"J\xff\xff\xff\x3fNt"))


@pytest.mark.parametrize("make", [packed_pickle, announced_storage])
def test_a_small_file_takes_no_gigabytes(net, file, make):
    make(net, file)
    assert file.stat().st_size < 4_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "damaged or no checkpoint" in refused(net, file) or "not enough memory" in refused(net, file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000, "kilobytes"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "the limit is gone again"


@pytest.mark.parametrize("prefix", ["module.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_training_runs_are_dropped(net, file, prefix):
    state = filled(net)
    torch.save({"ema": {prefix + key: value for key, value in state.items()}, "step": 7}, file)
    load_network(net, file)
    assert_loaded(net, state)


def test_a_file_without_the_counters_of_batch_norms_is_loaded_as_torch_loads_it(net, file):
    state = filled(net)
    counter = "part.module.num_batches_tracked"
    torch.save({key: value for key, value in state.items() if key != counter}, file)
    before = net.state_dict()[counter].clone()
    load_network(net, file)
    assert_loaded(net, state | {counter: before})


def test_a_training_runs_file_with_optimiser_and_numpy_scalars_is_loaded(net, file):
    state = filled(net)
    optimiser = torch.optim.Adam(net.parameters())
    net.last(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    beside = {"optimizer": optimiser.state_dict(), "best_ap": np.float64(0.68), "epoch": np.int64(3), "ok": np.bool_(1)}
    torch.save({"state_dict": state, **beside}, file)
    load_network(net, file)
    assert_loaded(net, state)


def test_a_checkpoint_of_another_joint_count_is_named_as_such(file):
    torch.save(build_network(load_config("dekr_w32_crowdpose", PAIRS)).state_dict(), file)
    message = error_of(load_network, build_network(load_config(pairs=PAIRS)), file)
    assert (
        "a checkpoint of 14 joints, this network has 17; name the configuration of its data set with --cfg" in message
    )
