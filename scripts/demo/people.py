"""Draw a data set of people in COCO's layout: annotations with all 17 joints, and a zip of JPEG images.

    python3 scripts/demo/people.py --output data/demo --pictures 40 --seed 1

writes data/demo/annotations/person_keypoints_val2017.json and data/demo/images/val2017.zip. From ten images on, all
input sizes occur; one image in twenty shows nobody. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from dekr_infer.cli.app import Arguments, Parser, non_negative_int, positive_int, run
from dekr_infer.data.coco import annotation_path
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.skeleton import COCO_17
from dekr_infer.storage.atomic import atomic_write, read_json, sha256, write_json
from scripts.demo.drawing.scene import LabelledPerson, draw_scene

DRAWING = 1  # raise it when the same seed draws other images
JPEG_QUALITY = 92
EMPTY_EVERY = 20  # images; image EMPTY_AT of each such group shows nobody
EMPTY_AT = 7
SIZE_CYCLE = tuple(Size(h, w) for h, w in ((512, 768), (768, 512), (512, 1024), (512, 512), (512, 768), (1024, 512),
                   (512, 768), (768, 512), (512, 768), (512, 1024)))  # fmt: skip
SHORT_SIDES = (300, 520)  # pixels
LONGEST = 1.95  # long side over short side
CATEGORY = {
    "supercategory": "person",
    "id": 1,
    "name": "person",
    "keypoints": list(COCO_17.joints),
    "skeleton": [[a + 1, b + 1] for a, b in COCO_17.limbs],
}


def image_sizes(rng: np.random.Generator, images: int) -> list[Size]:
    """Return that many sizes, distinct as far as possible; their input sizes follow SIZE_CYCLE."""
    sizes: list[Size] = []
    used: set[Size] = set()
    for index in range(images):
        input_size = SIZE_CYCLE[index % len(SIZE_CYCLE)]
        for attempt in range(10_000):
            short = int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1))
            long = int(short * rng.uniform(1, LONGEST))
            size = Size(long, short) if input_size.h > input_size.w else Size(short, long)
            if PUBLISHED_SIZES.place(size).input == input_size and (size not in used or attempt > 1000):
                break
        used.add(size)
        sizes.append(size)
    return sizes


def draw_images(seed: int, images: int) -> Iterator[tuple[int, np.ndarray, list[LabelledPerson]]]:
    """Yield the images of a data set in its order: id, (h, w, 3) uint8 RGB, labels."""
    rng = np.random.default_rng(seed)
    sizes = image_sizes(rng, images)
    ids = rng.choice(np.arange(1, max(1_000_000, 2 * images)), images, replace=False)
    for index, (image_id, size) in enumerate(zip(ids, sizes, strict=True)):
        nobody = index % EMPTY_EVERY == EMPTY_AT
        scene = draw_scene(np.random.default_rng([seed, index]), size, people=0 if nobody else None)
        yield int(image_id), scene.image, scene.people


def write_data_set(output: Path, split: str, images: int, seed: int, overwrite: bool = False) -> str:
    """Draw and write a data set, unless the annotations' `info` shows that this very set is complete.

    Returns:
        A one-line summary.
    Raises:
        DekrError: another data set is there and `overwrite` is not set, or a file cannot be written.
    """
    settings = {"pictures": images, "seed": seed, "split": split, "drawing": DRAWING}
    labels, archive = annotation_path(output, split), output / "images" / f"{split}.zip"
    if not overwrite and (labels.exists() or archive.exists()):
        found = _info(labels)
        if found.get("settings") != settings:
            raise DekrError(
                f"{labels if found else output}: holds another data set than {images} images of seed {seed}; "
                "add --overwrite to replace it, or choose another --output"
            )
        if archive.is_file() and found.get("images_sha256") == sha256(archive):
            return f"nothing to do: {output} holds these {images} images"
    dataset: dict = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": [CATEGORY]}
    with atomic_write(archive) as unfinished:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as members:
            for drawn in tqdm(draw_images(seed, images), "drawing", images, leave=False, disable=None):
                _add(dataset, members, split, *drawn)
        dataset["info"] = {
            "description": "drawn people, made by scripts/demo/people.py",
            "settings": settings,
            "images_sha256": sha256(unfinished),
            "versions": {"numpy": np.__version__, "opencv": cv2.__version__},
        }
        write_json(labels, dataset)  # before the archive gets its name: after a kill, the next run draws the rest
    return _summary(dataset, output)


def _add(
    dataset: dict, members: zipfile.ZipFile, split: str, image_id: int, image: np.ndarray, people: list[LabelledPerson]
) -> None:
    """Enter an image and its people into the annotations and the zip; coordinates in pixels, to a hundredth."""
    name = f"{image_id:012d}.jpg"
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise DekrError(f"{name}: OpenCV cannot write JPEG; install the version in requirements.txt")
    members.writestr(zipfile.ZipInfo(f"{split}/{name}"), jpeg.tobytes())  # dated 1980: the same bytes every time
    height, width = image.shape[:2]
    dataset["images"].append({"id": image_id, "file_name": name, "height": height, "width": width, "license": 0})
    for person in people:
        keypoints = [[round(x, 2), round(y, 2), int(v)] for x, y, v in person.keypoints.tolist()]
        dataset["annotations"].append(
            {
                "id": len(dataset["annotations"]) + 1,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": int(np.count_nonzero(person.keypoints[:, 2])),
                "keypoints": [value for keypoint in keypoints for value in keypoint],
                "bbox": person.bbox,
                "area": person.area,
                "segmentation": person.segmentation,
            }
        )


def _summary(dataset: dict, output: Path) -> str:
    images, people = dataset["images"], dataset["annotations"]
    empty = len(images) - len({person["image_id"] for person in people})
    input_sizes = Counter(PUBLISHED_SIZES.place(Size(image["height"], image["width"])).input for image in images)
    histogram = ", ".join(f"{input_size}: {number}" for input_size, number in input_sizes.most_common())
    return f"{len(images)} images ({empty} with nobody), {len(people)} people, input sizes {histogram} -> {output}"


def _info(labels: Path) -> dict:
    """Return the `info` of an annotation file; empty if it cannot be read."""
    try:
        info = read_json(labels)["info"]
    except (DekrError, KeyError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}


def _name(text: str) -> str:
    if not text or set(text) & set("/\\.") or not text.isascii():
        raise argparse.ArgumentTypeError(f"a plain name such as val2017, not {text!r}")
    return text


def main(argv: Arguments = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set (DATASET.ROOT)")
    parser.add_argument("--pictures", type=positive_int, default=40, metavar="N", help="number of images (%(default)s)")
    parser.add_argument(
        "--seed", type=non_negative_int, default=1, help="the same seed draws the same (default: %(default)s)"
    )
    parser.add_argument("--split", type=_name, default="val2017", help="name in the files (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of other settings")
    args = parser.parse_args(argv)
    return run(lambda: print(write_data_set(args.output, args.split, args.pictures, args.seed, args.overwrite)))


if __name__ == "__main__":
    sys.exit(main())
