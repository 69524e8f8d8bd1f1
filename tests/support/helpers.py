"""What several test files share: small data sets in COCO's layout, and running a command in this process."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from dekr_infer.data.coco import annotation_path
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17

COCO_MINI = Path(__file__).resolve().parents[3] / "shared" / "coco-mini"
CATEGORY = {"id": 1, "name": "person", "keypoints": list(COCO_17.joints), "skeleton": []}


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(main: Callable[[Sequence[str]], int], *words: object) -> Ran:
    """A command's `main` with these words, its output caught; argparse's way out counts as well."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Ran(code, out.getvalue(), err.getvalue())


def assert_refused(ran: Ran, code: int, *parts: str) -> None:
    """It ended with this exit code and one line on stderr that starts with `error: ` and holds the parts."""
    assert ran.code == code, ran
    assert ran.err.startswith("error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err + ran.out
    for part in parts:
        assert part in ran.err, ran.err


def write_annotation(
    root: Path, sizes: Mapping[str, Size], people: Sequence[dict[str, Any]] = (), split: str = "val2017"
) -> Path:
    """An annotation file for pictures by file name; their ids are 1000, 999, 998, ... in this order."""
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


def write_pictures(root: Path, pictures: Mapping[str, bytes], as_zip: bool = True, split: str = "val2017") -> Path:
    """Encoded pictures by file name, as COCO's zip or as a plain folder; returns where they are."""
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


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    """(h, w, 3) uint8 BGR as the bytes of a picture file."""
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def colourful(size: Size, seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8 BGR: smooth, different in every channel and corner."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(small, (size.w, size.h), interpolation=cv2.INTER_CUBIC)


def write_dump(folder: Path, stem: str, heat: np.ndarray, offset: np.ndarray) -> None:
    """One pass's outputs for a picture, as the network's runner writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, values in enumerate((heat, offset)):
        np.save(folder / f"{stem}_{index}.npy", np.ascontiguousarray(values[None], np.float32))


def with_thumbnail(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF-like segment that holds a whole small JPEG, end marker and all."""
    small = encode(colourful(Size(8, 8)), ".jpg")
    assert small.endswith(b"\xff\xd9")
    body = b"Exif\0\0" + small
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]
