"""Load the configuration: upstream's yacs tree, a fresh frozen copy per call, from defaults, YAML and KEY VALUE pairs.

Every error is one `ConfigError` line that says what to type instead.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from dekr_infer.config.schema import DEFAULTS
from dekr_infer.errors import ConfigError
from dekr_infer.storage.atomic import read_regular

CONFIG_FOLDER = Path(__file__).parent
WIDEST = 1 << 14  # hidden neurons of a rescoring net
LARGEST = 1_000_000  # of what is no use beyond; arithmetic still is exact there
BOUNDS = (  # outside them fits run for ever, divide by zero, or mean nothing
    ("DATASET.MAX_NUM_PEOPLE", 1, 10_000),  # the smallest input size has 16,384 cells to find them in
    ("DATASET.SIGMA", 0.1, LARGEST),
    ("TEST.GUASSIAN_KERNEL", 0, 512),
    ("TEST.MAX_ABSORB_DISTANCE", 0, LARGEST),
    ("TEST.ADJUST_THRESHOLD", -LARGEST, LARGEST),
    ("TEST.NMS_NUM_THRE", 0, LARGEST),
)
DEFAULT_CONFIG = CONFIG_FOLDER / "dekr_w32_coco.yaml"


def load_config(path: str | Path | None = None, pairs: Sequence[str] = ()) -> CfgNode:
    """Load the configuration of one run.

    Args:
        path: a YAML file in upstream's form; `None` is HRNet-W32 on COCO. A name without a
            folder may also name a shipped configuration (`dekr_w48_coco`).
        pairs: KEY, VALUE, KEY, VALUE ... as typed after the flags, for example `["TEST.NMS_THRE", "0.05"]`.
    Returns:
        A frozen tree of its own; no two calls share one.
    Raises:
        ConfigError: an unknown key, an odd count, a value of the wrong type or out of the supported range.
    """
    config = CfgNode(DEFAULTS)
    fill(config, DEFAULT_CONFIG if path is None else _find(Path(path)), pairs)
    _check_supported(config)
    config.freeze()
    return config


def fill(config: CfgNode, file: Path, pairs: Sequence[str]) -> None:
    """Set a tree's values from a YAML file, then from KEY VALUE pairs, in place.

    Raises:
        ConfigError: see `load_config`.
    """
    for key, value in _leaves(_read_yaml(file)):
        _set(config, key, value, f"{file}: ")
    for key, text in _split_pairs(pairs):
        _set(config, key, text, "")


def _find(path: Path) -> Path:
    own = CONFIG_FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    return own if not path.is_file() and path.name == str(path) and own.exists() else path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(read_regular(path).decode("utf-8"), _PlainLoader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); --cfg expects a YAML file") from None
    except _YAML_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: not a plain YAML file ({reason}); correct the file") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: has no sections; --cfg expects a file like upstream's experiments/coco/w32/*.yaml")
    return tree


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags that create objects, and without aliases, a few of which can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


# What PyYAML raises for hostile or mistaken text: its own errors, and its constructors' for ill-formed scalars.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split_pairs(pairs: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, word in enumerate(pairs):
        is_flag = word.startswith("--") or (word.startswith("-") and position % 2 == 0)
        if is_flag:
            raise ConfigError(f"{word} comes after {pairs[0]}: flags come before the first KEY VALUE pair")
    if len(pairs) % 2:
        raise ConfigError(f"KEY VALUE pairs are uneven: the last word, {pairs[-1]}, has no partner")
    yield from zip(pairs[::2], pairs[1::2], strict=True)


def _parse(text: str, key: str) -> Any:
    """Return a typed value: a Python literal where the text is one (`0.05`, `True`, `[1]`), else the text itself."""
    try:
        return CfgNode._decode_cfg_value(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ConfigError(f"{key}: the value {text!r} cannot be read") from None


def _set(config: CfgNode, key: str, value: Any, where: str) -> None:
    *sections, name = key.split(".")
    meant = _parse(value, where + key) if isinstance(value, str) else value
    node = config
    for section in sections:
        if section not in node and node.is_new_allowed():
            node[section] = CfgNode(new_allowed=True)
        node = node.get(section)
        if not isinstance(node, CfgNode):
            raise _unknown(config, key, where)
    if name not in node:
        if not node.is_new_allowed():
            raise _unknown(config, key, where)
        node[name] = meant
        return
    if isinstance(node[name], CfgNode):
        raise ConfigError(f"{where}{key} is a section; name one of its keys: {', '.join(sorted(node[name]))}")
    if isinstance(node[name], str) and not isinstance(meant, str):
        meant = str(value)
    node[name] = _coerced(node[name], meant, where + key)


def _coerced(old: Any, new: Any, name: str) -> Any:
    """Return `new` in the type of `old`: an int becomes a float and a list a tuple; nothing else is converted."""
    kind = type(old)
    if kind is float and type(new) is int:
        return float(new)
    if kind in (list, tuple) and isinstance(new, list | tuple):
        if old and not all(_same_shape(old[0], item) for item in new):
            raise ConfigError(f"{name} expects a list like {old!r}, got {new!r}")
        return kind(new)
    if kind is float and type(new) is float and not math.isfinite(new):
        raise ConfigError(f"{name} expects a finite number such as {old!r}, got {new!r}")
    if type(new) is not kind:
        raise ConfigError(f"{name} expects {_KIND_NAMES[kind]} such as {old!r}, got {new!r}")
    return new


_KIND_NAMES = {bool: "True or False,", int: "a whole number", float: "a number", list: "a list", tuple: "a list"}


def _same_shape(old: Any, new: Any) -> bool:
    if isinstance(old, list | tuple):
        return isinstance(new, list | tuple) and all(_same_shape(old[0], item) for item in new)
    if isinstance(old, int | float) and not isinstance(old, bool):
        return isinstance(new, int | float) and not isinstance(new, bool)
    return isinstance(new, type(old))


def _unknown(config: CfgNode, key: str, where: str) -> ConfigError:
    known = [name for name, _ in _leaves(config)]
    by_upper = {name.upper(): name for name in known}
    guess = difflib.get_close_matches(key.upper(), by_upper, n=1, cutoff=0.5)
    hint = f"; did you mean {by_upper[guess[0]]}?" if guess else "; the keys are listed in dekr_infer/defaults.py"
    return ConfigError(f"{where}unknown key {key}{hint}")


def _check_supported(config: CfgNode) -> None:
    """Raise for settings that upstream supports and this chain does not, rather than ignore them."""
    data, test, hidden = config.DATASET, config.TEST, config.RESCORE.HIDDEN_LAYER
    for wrong, message in (
        ("coco" not in data.DATASET, f"DATASET.DATASET {data.DATASET}: only COCO data sets are supported"),
        (data.NUM_JOINTS != 17, f"DATASET.NUM_JOINTS {data.NUM_JOINTS}: COCO has 17 joints"),
        (config.MODEL.NUM_JOINTS != 17, f"MODEL.NUM_JOINTS {config.MODEL.NUM_JOINTS}: COCO has 17 joints"),
        (list(test.SCALE_FACTOR) != [1], f"TEST.SCALE_FACTOR {test.SCALE_FACTOR}: one scale is supported, [1]"),
        (not 0 <= test.KEYPOINT_THRESHOLD < 1, f"TEST.KEYPOINT_THRESHOLD {test.KEYPOINT_THRESHOLD}: from 0 to 1"),
        (test.NMS_THRE < 0, f"TEST.NMS_THRE {test.NMS_THRE}: not below 0"),
        (not data.TEST, "DATASET.TEST is empty: name the split, for example val2017"),
        (set(data.TEST) & {"/", "\0"}, f"DATASET.TEST {data.TEST!r}: the name of a split, for example val2017"),
        (not 0 < hidden <= WIDEST, f"RESCORE.HIDDEN_LAYER {hidden}: from 1 to {WIDEST}; upstream's net has 256"),
    ):
        if wrong:
            raise ConfigError(message)
    for key, least, most in BOUNDS:
        section, name = key.split(".")
        if not least <= config[section][name] <= most:
            raise ConfigError(f"{key} {config[section][name]}: from {least} to {most}")
