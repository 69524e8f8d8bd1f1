"""Load checkpoints strictly and safely: every misfit is named, and no pickled code ever runs."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import atomic_write

PREFIXES = ("module.", "_orig_mod.")  # what data-parallel training and torch.compile put before every key
ENTRIES = ("state_dict", "model", "ema")  # of a training run's file, which may hold its optimiser's state besides
JOINT_KEY = re.compile(r"offset_final_layer\.\d+\.weight")  # one a joint
NUMPY_SCALARS = [  # beside the weights, such as a best AP: numbers alone, no code
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
COUNTER = "num_batches_tracked"  # of a batch norm; inference has no use for it, and old files lack it
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
LOADING = 1 << 29  # bytes that loading may take, besides four times the file's
NAMED = 3  # how many offending keys an error message names


def save(value: Any, path: Path) -> None:
    """Write a value with torch.save, all or nothing; torch's own file writer hides ENOSPC behind another error.

    Raises:
        DekrError: the disk is full, or the file cannot be written.
    """
    data = io.BytesIO()
    torch.save(value, data)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file, on the CPU, without the prefixes of a training run.

    The state may also be an entry `state_dict`, `model` or `ema` of the file, the first one that is there.

    Raises:
        DekrError: the file is missing, damaged, not a checkpoint, or would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise DekrError(f"{path}: no such checkpoint; the README says where the weights go")
    try:
        with warnings.catch_warnings(), _bounded_memory(LOADING + 4 * path.stat().st_size):
            warnings.simplefilter("ignore")  # torch warns about legacy formats; what matters is reported below
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise DekrError(f"{path}: not enough memory to load it") from None
    except Exception as error:  # torch raises many kinds for damaged files; all mean the same to the user
        is_sure = "GLOBAL" in str(error)
        reason = "holds more than weights" if is_sure else "damaged or no checkpoint, or holds more than weights"
        raise DekrError(f"{path}: {reason}; download it again, or save it as a plain state dict") from None
    while isinstance(loaded, Mapping) and (
        entry := next((k for k in ENTRIES if isinstance(loaded.get(k), Mapping)), "")
    ):
        loaded = loaded[entry]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DekrError(f"{path}: holds no state dict; save the network's state_dict() instead")
    if odd := [str(key) for key, value in loaded.items() if not _is_plain(value)]:
        raise DekrError(
            f"{path}: {len(odd)} entries are not of plain numbers ({', '.join(odd[:NAMED])}); save a state_dict() of "
            "dense tensors on the CPU"
        )
    state = {_plain_key(str(key)): value for key, value in loaded.items()}
    if len(state) < len(loaded):
        raise DekrError(
            f"{path}: holds some keys twice, with and without {' or '.join(PREFIXES)}; save the state_dict() again"
        )
    return state


def _plain_key(key: str) -> str:
    """Return a key without all prefixes of a training run."""
    while (shorter := next((key.removeprefix(p) for p in PREFIXES if key.startswith(p)), key)) != key:
        key = shorter
    return key


@contextlib.contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has: a small file may announce gigabytes.

    Raises:
        MemoryError: this, or an error of torch's own, where that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + more
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def load_network(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network; see `read_state` and `load_state`."""
    load_state(network, read_state(path), path)


def load_state(network: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load what `read_state` returned into a network, every key and every shape accounted for.

    Args:
        network: takes the values.
        state: of the checkpoint.
        path: of the checkpoint, for messages.
    Raises:
        DekrError: keys are missing, unexpected or ill-shaped, or a weight is not finite.
    """
    expected = network.state_dict()
    found, wanted = (len([key for key in keys if JOINT_KEY.fullmatch(key)]) for keys in (state, expected))
    if found and wanted and found != wanted:
        raise DekrError(
            f"{path}: a checkpoint of {found} joints, this network has {wanted}; name the configuration of its data "
            "set with --cfg, or its joints with DATASET.SKELETON"
        )
    counters = {key: value for key, value in expected.items() if key.endswith(COUNTER)}
    if expected.keys() - state.keys() == counters.keys():  # as torch's own strict loading takes such files
        state = state | counters
    problems = []
    known = {key: value for key, value in state.items() if key in expected}
    for label, keys in (
        ("missing", [key for key in expected if key not in state]),
        ("unexpected", [key for key in state if key not in expected]),
        ("ill-shaped", [_shapes(k, v, expected[k]) for k, v in known.items() if v.shape != expected[k].shape]),
        (
            "not finite",
            [k for k, v in known.items() if v.shape == expected[k].shape and not _is_finite(v, expected[k])],
        ),
    ):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            problems.append(f"{len(keys)} {label} ({', '.join(keys[:NAMED])}{more})")
    if problems:
        raise DekrError(f"{path}: not a checkpoint of this network: {'; '.join(problems)}; check --cfg and the file")
    network.load_state_dict(state, strict=True)


def _is_finite(value: Tensor, wanted: Tensor) -> bool:
    return bool(value.to(wanted.dtype).isfinite().all())


def _is_plain(value: Tensor) -> bool:
    """Return whether these are dense real numbers: not complex, sparse, nested or quantised, and not only a shape."""
    dense = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
    return dense and value.dtype in PLAIN_DTYPES


def _shapes(key: str, found: Tensor, wanted: Tensor) -> str:
    return f"{key}: {tuple(found.shape)} instead of {tuple(wanted.shape)}"
