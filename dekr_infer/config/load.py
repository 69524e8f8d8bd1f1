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
from dekr_infer.geometry import EXACT, MULTIPLE, STRIDE, InputSizes
from dekr_infer.skeleton import SHIPPED, Skeleton
from dekr_infer.storage.atomic import read_regular

CONFIG_FOLDER = Path(__file__).parent
WIDEST = 1 << 14  # hidden neurons of a rescoring net
LARGEST = 1_000_000  # of what is no use beyond; arithmetic still is exact there
LARGEST_INPUT = 4096  # pixels of the short side
SIZES_FORM = f"{EXACT}, or sizes of short side {{0}} and multiples of 32 such as {{0}},{{0}};{{0}},{{0}}"
BOUNDS = (  # outside them fits run for ever, divide by zero, or mean nothing
    ("DATASET.MAX_NUM_PEOPLE", 1, 10_000),  # the smallest input size has 16,384 cells to find them in
    ("DATASET.SIGMA", 0.1, LARGEST),
    ("TEST.GUASSIAN_KERNEL", 0, 512),
    ("TEST.MAX_ABSORB_DISTANCE", 0, LARGEST),
    ("TEST.ADJUST_THRESHOLD", -LARGEST, LARGEST),
    ("TEST.NMS_NUM_THRE", 0, LARGEST),
)
SCALES = (0.5, 1, 2)  # at which inputs are multiples of 32 and up-sampled maps have a whole stride
CROWD = "crowd_pose"  # of the names that upstream gives CrowdPose in DATASET.DATASET
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
    tree = read_yaml(file, "--cfg")
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: has no sections; --cfg expects a file like upstream's experiments/coco/w32/*.yaml")
    for key, value in _leaves(tree):
        _set(config, key, value, f"{file}: ")
    for key, text in _split_pairs(pairs):
        _set(config, key, text, "")


def skeleton_of(config: CfgNode) -> Skeleton:
    """Return the skeleton that DATASET.SKELETON names, or that of the data set that DATASET.DATASET names.

    Raises:
        ConfigError: the file of a skeleton is missing or of another form, or nothing names a known skeleton.
    """
    named, data_set = config.DATASET.get("SKELETON", ""), config.DATASET.DATASET  # upstream's own tree lacks the first
    if not named and "coco" not in data_set and CROWD not in data_set:
        raise ConfigError(f"DATASET.DATASET {data_set}: neither coco nor {CROWD}; name its joints by DATASET.SKELETON")
    named = named or ("crowdpose" if CROWD in data_set else "coco")
    return SHIPPED.get(named) or Skeleton.parse(read_yaml(Path(named), "DATASET.SKELETON"), named)


def _find(path: Path) -> Path:
    own = CONFIG_FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    return own if not path.is_file() and path.name == str(path) and own.exists() else path


def read_yaml(path: Path, key: str) -> Any:
    """Return the content of a plain YAML file; `key` is what names it, for messages.

    Raises:
        ConfigError: it cannot be read, or is no YAML without tags and aliases.
    """
    try:
        return yaml.load(read_regular(path).decode("utf-8"), _PlainLoader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {key} expects a YAML file") from None
    except _YAML_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: not a plain YAML file ({reason}); correct the file") from None


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
    hint = f"; did you mean {by_upper[guess[0]]}?" if guess else "; docs/settings.md lists the keys"
    return ConfigError(f"{where}unknown key {key}{hint}")


def _check_supported(config: CfgNode) -> None:
    """Raise for settings that upstream supports and this chain does not, rather than ignore them."""
    data, test, hidden = config.DATASET, config.TEST, config.RESCORE.HIDDEN_LAYER
    skeleton = skeleton_of(config)
    joints, crowd = len(skeleton), not data.SKELETON and CROWD in data.DATASET
    expected = f"{skeleton.name} has {joints} joints; add DATASET.NUM_JOINTS {joints} MODEL.NUM_JOINTS {joints}"
    scales = list(test.SCALE_FACTOR)
    side, quarter = data.INPUT_SIZE, data.INPUT_SIZE // STRIDE
    odd_sizes = _odd_sizes(test.INPUT_SIZES, side)
    for wrong, message in (
        (crowd and joints != data.NUM_JOINTS, f"DATASET.DATASET {data.DATASET}: {expected}"),
        (joints != data.NUM_JOINTS, f"DATASET.NUM_JOINTS {data.NUM_JOINTS}: {expected}"),
        (joints != config.MODEL.NUM_JOINTS, f"MODEL.NUM_JOINTS {config.MODEL.NUM_JOINTS}: {expected}"),
        (
            config.RESCORE.VALID and not skeleton.rescore_pairs,
            f"RESCORE.VALID: {skeleton.name}'s skeleton names no rescoring pairs; add RESCORE.VALID False",
        ),
        (
            1 not in scales or not set(scales) <= set(SCALES) or len(set(scales)) < len(scales),
            f"TEST.SCALE_FACTOR {scales}: 1, alone or with {', '.join(f'{s:g}' for s in SCALES if s != 1)}, each once",
        ),
        (
            0.5 in scales and any(side % 64 for size in InputSizes.parse(test.INPUT_SIZES) or () for side in size),
            f"TEST.SCALE_FACTOR {scales}: half of the input sizes {test.INPUT_SIZES} are no multiples of 32",
        ),
        (
            side % MULTIPLE or not MULTIPLE <= side <= LARGEST_INPUT,
            f"DATASET.INPUT_SIZE {side}: a multiple of {MULTIPLE} from {MULTIPLE} to {LARGEST_INPUT}; add "
            "DATASET.INPUT_SIZE 512 DATASET.OUTPUT_SIZE 128",
        ),
        (
            quarter != data.OUTPUT_SIZE,
            f"DATASET.INPUT_SIZE {side}: the maps have a quarter of it, DATASET.OUTPUT_SIZE is {data.OUTPUT_SIZE}; "
            f"add DATASET.OUTPUT_SIZE {quarter}",
        ),
        (odd_sizes, f"TEST.INPUT_SIZES {test.INPUT_SIZES}: {SIZES_FORM.format(side)}"),
        (not 0 <= test.KEYPOINT_THRESHOLD < 1, f"TEST.KEYPOINT_THRESHOLD {test.KEYPOINT_THRESHOLD}: from 0 to 1"),
        (config.MODEL.NAME != "hrnet_dekr", f"MODEL.NAME {config.MODEL.NAME}: only hrnet_dekr is supported"),
        (
            set(config.MODEL.SPEC.STAGES.FUSE_METHOD) != {"SUM"},
            f"MODEL.SPEC.STAGES.FUSE_METHOD {config.MODEL.SPEC.STAGES.FUSE_METHOD}: only SUM is supported",
        ),
        (
            config.RESCORE.GET_DATA,
            "RESCORE.GET_DATA True: only upstream's code makes data for training",
        ),
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


def _odd_sizes(text: str, short_side: int) -> bool:
    """Return whether a value of TEST.INPUT_SIZES does not suit the network or the short side."""
    if text in ("", EXACT):
        return False
    sizes = InputSizes.parse(text)
    return sizes is None or sizes.exact or any(min(s) != short_side or s.h % 32 or s.w % 32 for s in sizes)
