"""Data sets of other joints than COCO's, made of a COCO data set with the same images."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dekr_infer.skeleton import COCO_17, CROWDPOSE_14

BODY = [COCO_17.joints.index(name) for name in CROWDPOSE_14.joints[:12]]
FIVE = """
name: five
joints: [snout, left_hand, right_hand, left_foot, right_foot]
partners: [[left_hand, right_hand], [left_foot, right_foot]]
limbs: [[snout, left_hand], [snout, right_hand], [snout, left_foot], [snout, right_foot]]
sigmas: [0.05, 0.062, 0.062, 0.089, 0.089]
rescoring:
aliases: {snout: [nose]}
"""
FIVE_NAMES = ("Nose", "left-hand", "right hand", "left_foot", "right_foot")  # as the annotation file spells them
FIVE_OF_COCO = [0, 9, 10, 15, 16]  # nose, wrists, ankles
INDICES = (0.1, 0.2, 0.5, 0.8, 1.3)  # crowd indices, in turn


def write_crowdpose(coco: Path, root: Path, split: str = "test") -> None:
    """Write a data set in CrowdPose's layout: no areas, a crowd index an image, neck and head made of COCO's joints."""

    def joints(keypoints: np.ndarray) -> np.ndarray:
        shoulders = keypoints[[5, 6]]
        neck = [*shoulders[:, :2].mean(0), 2.0 * bool(shoulders[:, 2].all())]
        return np.concatenate((keypoints[BODY], keypoints[:1], [neck]))

    content = _changed(coco, joints, CROWDPOSE_14.joints)
    for index, image in enumerate(content["images"]):
        image["crowdIndex"] = INDICES[index % len(INDICES)]
    for person in content["annotations"]:
        del person["area"]
    (root / "json").mkdir(parents=True)
    (root / "json" / f"crowdpose_{split}.json").write_text(json.dumps(content))
    with (
        zipfile.ZipFile(coco / "images" / "val2017.zip") as source,
        zipfile.ZipFile(root / "images.zip", "w") as target,
    ):
        for image in content["images"]:
            target.writestr(f"images/{image['file_name']}", source.read(f"val2017/{image['file_name']}"))


def write_five(coco: Path, root: Path) -> Path:
    """Write a data set of five joints in COCO's layout, with the joints' names spelt otherwise; return the skeleton."""
    content = _changed(coco, lambda keypoints: keypoints[FIVE_OF_COCO], FIVE_NAMES)
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(content))
    (root / "images").symlink_to(coco / "images")
    (root / "five.yaml").write_text(FIVE)
    return root / "five.yaml"


def _changed(coco: Path, joints: Any, names: Any) -> dict[str, Any]:
    """Return the content of a COCO annotation file with other joints; people who lose all of them are left out."""
    content: dict[str, Any] = json.loads((coco / "annotations" / "person_keypoints_val2017.json").read_text())
    content["categories"] = [{"id": 1, "name": "person", "keypoints": list(names)}]
    for person in content["annotations"]:
        keypoints = joints(np.array(person["keypoints"], float).reshape(17, 3))
        person["keypoints"], person["num_keypoints"] = keypoints.ravel().tolist(), int((keypoints[:, 2] > 0).sum())
    return content
