"""Skeletons: joint names, left/right partners, limbs, OKS sigmas and the pairs of the rescoring net, as one value.

"left" is the person's own left. The order of the joints is that of the annotations and of every (people, joints, 3)
array in this project. A skeleton is a YAML file of the form of dekr_infer/skeletons/*.yaml, which docs/settings.md
explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dekr_infer.errors import ConfigError

FOLDER = Path(__file__).parent / "skeletons"
KEYS = ("joints", "partners", "limbs", "sigmas", "rescoring")
MORE_KEYS = ("name", "aliases")
MOST_JOINTS = 1000


@dataclass(frozen=True)
class Skeleton:
    """What is known of the joints of a data set.

    Args:
        joints: the names, in order.
        partners: joint j of a mirrored person is joint `partners[j]` of the person.
        limbs: pairs of joints that a drawing connects, 0-based.
        sigmas: per joint, the standard deviation of COCO's object keypoint similarity, as a share of a person's size.
        rescore_pairs: pairs of joints whose differences are features of the rescoring net; none without such a net.
        torso_pairs: indices into `rescore_pairs`; the mean length of these pairs is the unit of the features.
        name: of the skeleton, for messages.
        aliases: per joint, other names that annotation files give it.
    """

    joints: tuple[str, ...]
    partners: tuple[int, ...]
    limbs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    rescore_pairs: tuple[tuple[int, int], ...]
    torso_pairs: tuple[int, ...]
    name: str = "own"
    aliases: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        """Return the number of joints."""
        return len(self.joints)

    @property
    def heatmap_channels(self) -> int:
        """One channel a joint, then the person centre."""
        return len(self) + 1

    @property
    def offset_channels(self) -> int:
        """X then y of each joint."""
        return 2 * len(self)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """The pairs (left, right) of partners, the lower index first."""
        return tuple((joint, partner) for joint, partner in enumerate(self.partners) if joint < partner)

    @classmethod
    def parse(cls, tree: Any, source: str) -> Skeleton:
        """Return the skeleton in the content of a YAML file.

        Args:
            tree: the content.
            source: the file, for messages.
        Raises:
            ConfigError: a part is missing or of another form, or names an unknown joint.
        """
        entries = tree if isinstance(tree, dict) else {}
        if missing := [key for key in KEYS if key not in entries]:
            raise ConfigError(
                f"{source}: not a skeleton, it lacks {', '.join(missing)}; add them, empty lists where none"
            )
        if unknown := [str(key) for key in entries if key not in KEYS + MORE_KEYS]:
            raise ConfigError(f"{source}: unknown key {unknown[0]}; a skeleton has {', '.join(KEYS + MORE_KEYS)}")
        read = _Reader(entries, source)
        joints, rescoring = read.joints(), entries["rescoring"] or {}
        pairs = read.pairs("rescoring pairs", rescoring.get("pairs") if isinstance(rescoring, dict) else rescoring)
        torso = read.pairs("rescoring torso", rescoring.get("torso") if isinstance(rescoring, dict) else None)
        if any(pair not in pairs for pair in torso) or bool(pairs) != bool(torso):
            raise read.wrong("rescoring torso", "pairs of joints out of rescoring pairs")
        partners = list(range(len(joints)))
        for left, right in read.pairs("partners", entries["partners"]):
            if left == right or partners[left] != left or partners[right] != right:
                raise read.wrong("partners", "pairs [left, right] in which no joint occurs twice")
            partners[left], partners[right] = right, left
        return cls(
            joints,
            tuple(partners),
            read.pairs("limbs", entries["limbs"]),
            read.sigmas(),
            pairs,
            tuple(map(pairs.index, torso)),
            str(entries.get("name", Path(source).stem)),
            read.aliases(),
        )


class _Reader:
    """Reads the parts of a skeleton's file."""

    def __init__(self, entries: dict[str, Any], source: str) -> None:
        self.entries, self.source = entries, source
        self.number: dict[str, int] = {}

    def wrong(self, key: str, expected: str) -> ConfigError:
        """Return the error for a part of another form."""
        return ConfigError(f"{self.source}: {key}: expected {expected}; correct the file")

    def joints(self) -> tuple[str, ...]:
        """Return the joints' names."""
        names = self.entries["joints"]
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise self.wrong("joints", "a list of names")
        if not 0 < len(set(names)) == len(names) <= MOST_JOINTS:
            raise self.wrong("joints", f"from 1 to {MOST_JOINTS} names, each once")
        self.number = {name: index for index, name in enumerate(names)}
        return tuple(names)

    def pairs(self, key: str, value: Any) -> tuple[tuple[int, int], ...]:
        """Return pairs of joints by their numbers."""
        if not isinstance(value or [], list):
            raise self.wrong(key, "a list of pairs of joints")
        for pair in value or ():
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
                raise self.wrong(key, "pairs of joints such as [left_hip, right_hip]")
            if unknown := [name for name in pair if name not in self.number]:
                raise ConfigError(f"{self.source}: {key}: {unknown[0]} is none of its joints; correct the file")
        return tuple((self.number[first], self.number[second]) for first, second in value or ())

    def sigmas(self) -> tuple[float, ...]:
        """Return one sigma a joint."""
        values, count = self.entries["sigmas"], len(self.number)
        good = isinstance(values, list) and all(
            type(value) in (int, float) and 0 < value < math.inf for value in values
        )
        if not good or len(values) != count:
            raise self.wrong("sigmas", f"{count} numbers above 0, one a joint")
        return tuple(map(float, values))

    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """Return the other names of each joint."""
        found = self.entries.get("aliases") or {}
        if not isinstance(found, dict) or not all(isinstance(names, list) for names in found.values()):
            raise self.wrong("aliases", "lists of other names by joint")
        if unknown := [str(name) for name in found if name not in self.number]:
            raise ConfigError(f"{self.source}: aliases: {unknown[0]} is none of its joints; correct the file")
        return tuple(tuple(map(str, found.get(name, ()))) for name in self.number)


def joints_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the joints that a graph's metadata name; COCO's where they name none."""
    return tuple(filter(None, metadata.get("skeleton", "").split(","))) or COCO_17.joints


def shipped_skeleton(joints: Sequence[str]) -> Skeleton | None:
    """Return the shipped skeleton with these joints; `None` where there is none."""
    return next((skeleton for skeleton in SHIPPED.values() if skeleton.joints == tuple(joints)), None)


def _shipped(name: str) -> Skeleton:
    file = FOLDER / f"{name}.yaml"
    return Skeleton.parse(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


COCO_17 = _shipped("coco")
CROWDPOSE_14 = _shipped("crowdpose")
SHIPPED = {"coco": COCO_17, "crowdpose": CROWDPOSE_14}
