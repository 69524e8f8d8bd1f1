"""Ground truth for the golden decodings: the recorded people, disturbed, with some left out and others added.

So that each of the ten COCO metrics lies between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden import cases
from tests.support.coco_files import person

KEYS = [f"{name}/{flip}" for name in cases.map_cases() if name != "no size" for flip in ("flip", "single")]
IMAGES = {f"{key.replace('/', '-')}.jpg": cases.IMAGE for key in KEYS}  # one for every case and pass


def people(recorded: Mapping[str, np.ndarray], image_ids: list[int]) -> list[dict[str, Any]]:
    """Return entries of `annotations`, from the final poses of decoding.npz by key.

    Every fifth person is not annotated. The others' joints are moved by up to a tenth of the person's size, more from
    person to person, and a quarter of the joints is not labelled. Every image also has a person that nobody finds.
    """
    rng = np.random.default_rng(22)
    entries: list[dict[str, Any]] = []
    for image_id, key in zip(image_ids, KEYS, strict=True):
        poses = recorded.get(f"{key}/final", np.zeros((0, 17, 3)))[:, :, :2].astype(float)
        hidden = rng.integers(0, 80, (17, 2)).astype(float)
        for rank, pose in enumerate((*poses, hidden)):
            moved = pose + rng.integers(-32, 33, (17, 2)) / 896 * np.ptp(pose, axis=0) * (rank % 3 + 1)
            visible = 2.0 * (rng.integers(0, 4, 17) > 0)
            if rank % 5 != 2 or rank == len(poses):
                entries.append(person(len(entries) + 1, image_id, np.column_stack((moved, visible))))
    return entries
