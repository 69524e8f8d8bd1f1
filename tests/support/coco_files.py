"""Small data sets in COCO's layout, network outputs on disk, and where the real images are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dekr_infer.data.coco import annotation_path
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17

COCO_MINI = Path(__file__).resolve().parents[3] / "shared" / "coco-mini"
NO_COCO_MINI = "no real images: ../shared/coco-mini is missing beside the checkout"
REAL = pytest.param("real", marks=pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_COCO_MINI))
DRAWN_AND_REAL = pytest.mark.parametrize("which", ["drawn", REAL])
CATEGORY = {"id": 1, "name": "person", "keypoints": list(COCO_17.joints), "skeleton": []}


def write_annotation(
    root: Path, sizes: Mapping[str, Size], people: Sequence[dict[str, Any]] = (), split: str = "val2017"
) -> Path:
    """An annotation file for images by file name; their ids are 1000, 999, 998, ... in this order."""
    images = [
        {"id": 1000 - index, "file_name": name, "height": size.h, "width": size.w}
        for index, (name, size) in enumerate(sizes.items())
    ]
    path = annotation_path(root, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": list(people), "categories": [CATEGORY]}))
    return path


def person(number: int, image_id: int, keypoints: np.ndarray) -> dict[str, Any]:
    """An entry of `annotations` for keypoints (17, 3): x, y, visibility."""
    x, y = keypoints[:, 0], keypoints[:, 1]
    w, h = float(np.ptp(x)), float(np.ptp(y))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        "keypoints": keypoints.astype(float).ravel().tolist(),
        "bbox": [float(x.min()), float(y.min()), w, h],
        "area": 0.6 * w * h,
    }


def keypoints(seed: int, size: float = 150.0) -> np.ndarray:
    """Return (17, 3): a person about `size` pixels wide, all joints visible."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (17, 2)) * (size, 1.3 * size) + rng.uniform(10, 100, 2)
    return np.concatenate([points, np.full((17, 1), 2.0)], axis=1)


def write_images(root: Path, pictures: Mapping[str, bytes], as_zip: bool = True, split: str = "val2017") -> Path:
    """Encoded images by file name, as COCO's zip or as a plain folder; returns where they are."""
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    if as_zip:
        with zipfile.ZipFile(images / f"{split}.zip", "w") as members:
            for name, data in pictures.items():
                members.writestr(f"{split}/{name}", data)
        return images / f"{split}.zip"
    for name, data in pictures.items():
        (images / split / name).parent.mkdir(parents=True, exist_ok=True)
        (images / split / name).write_bytes(data)
    return images / split


def write_outputs(folder: Path, stem: str, heat: np.ndarray, offset: np.ndarray) -> None:
    """One pass's outputs for an image, as the network's runner writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, values in enumerate((heat, offset)):
        np.save(folder / f"{stem}_{index}.npy", np.ascontiguousarray(values[None], np.float32))
