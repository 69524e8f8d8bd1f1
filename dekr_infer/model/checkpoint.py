"""Load checkpoints strictly and safely: what does not fit is named, and no pickled code ever runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dekr_infer.errors import DekrError

PREFIX = "module."  # what a data-parallel training run puts before every key
NAMED = 3  # how many offending keys an error message names


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU, without the data-parallel prefix.

    A file that holds the state under `state_dict` or `model` among other things is accepted too.

    Raises:
        DekrError: the file is missing, damaged, not a checkpoint, or would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise DekrError(f"{path}: no such checkpoint; see the README for where the weights go")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise DekrError(f"{path}: not enough memory to load it") from None
    except Exception as error:  # torch raises many kinds for damaged files; all mean the same to the user
        reason = "holds more than weights" if "weights_only" in str(error).lower() else "damaged or no checkpoint"
        raise DekrError(f"{path}: {reason}; fetch or save it again as a plain state dict") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DekrError(f"{path}: holds no state dict; save the network's state_dict() and try again")
    return {str(key).removeprefix(PREFIX): value for key, value in loaded.items()}


def load_network(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network, every key and every shape accounted for.

    Raises:
        DekrError: keys are missing, unexpected or ill-shaped, or a weight is not finite.
    """
    state = read_state(path)
    expected = network.state_dict()
    problems = []
    for label, keys in (
        ("missing", [key for key in expected if key not in state]),
        ("unexpected", [key for key in state if key not in expected]),
        ("ill-shaped", [_shapes(k, state, expected) for k in state if k in expected and _differ(k, state, expected)]),
        ("not finite", [key for key, value in state.items() if not torch.isfinite(value).all()]),
    ):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            problems.append(f"{len(keys)} {label} ({', '.join(keys[:NAMED])}{more})")
    if problems:
        raise DekrError(f"{path}: not a checkpoint of this network: {'; '.join(problems)}; check --cfg and the file")
    network.load_state_dict(state, strict=True)


def _differ(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return state[key].shape != expected[key].shape


def _shapes(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key}: {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
