"""The patched HRNet/DEKR checkout: its configuration tree and its network, for people who changed them.

Its modules are called `config`, `models`, `utils` and the like, so a process that uses it does nothing else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from dekr_infer.config.load import fill
from dekr_infer.errors import ConfigError, DekrError

EXPERIMENT = "experiments/coco/w32/w32_4x_reg03_bs10_512_adam_lr1e-3_coco_x140.yaml"
PATCHED = "lib/models/deform.py"  # the file that only the patch brings
REMEDY = "make the checkout with scripts/setup_upstream.sh"


def use_checkout(folder: Path) -> None:
    """Make the checkout's modules importable.

    Raises:
        DekrError: the folder is no checkout of HRNet/DEKR, or it is not patched.
    """
    library = folder / "lib"
    if not (library / "models" / "hrnet_dekr.py").is_file():
        raise DekrError(f"{folder}: no checkout of HRNet/DEKR; {REMEDY}")
    if not (folder / PATCHED).is_file():
        raise DekrError(f"{folder}: DEKR.patch is not applied; {REMEDY}")
    if str(library) not in sys.path:
        sys.path.insert(0, str(library))


def module(name: str) -> Any:
    """Import one of the checkout's modules, for example `core.nms`.

    Raises:
        DekrError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DekrError(f"the checkout's {name} cannot be imported ({error}); {REMEDY}") from None


def upstream_config(folder: Path, path: str | None, pairs: Sequence[str]) -> CfgNode:
    """Load the checkout's own configuration tree from a YAML file (default: HRNet-W32 on COCO) and pairs; frozen.

    Raises:
        ConfigError: see `dekr_infer.config.load.load_config`.
    """
    config: CfgNode = module("config").cfg.clone()
    config.defrost()
    file = Path(path) if path else folder / EXPERIMENT
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; --cfg expects one of {folder}/experiments")
    fill(config, file, pairs)
    config.freeze()
    return config


def upstream_network(config: CfgNode) -> nn.Module:
    """Build the checkout's network for a configuration, in evaluation mode, without weights.

    Raises:
        ConfigError: MODEL.NAME is none of its models.
        DekrError: the checkout's code fails on this configuration.
    """
    models = module("models")
    found = getattr(models, config.MODEL.NAME, None)
    if found is None:
        raise ConfigError(f"MODEL.NAME {config.MODEL.NAME}: no module of the checkout's lib/models")
    try:
        network: nn.Module = found.get_pose_net(config, is_train=False)
    except Exception as error:  # anything may go wrong in code that is not ours
        reason = f"{type(error).__name__}: {error}"
        raise DekrError(
            f"the checkout's {config.MODEL.NAME} cannot be built from this configuration: {reason}"
        ) from None
    return network.eval()
