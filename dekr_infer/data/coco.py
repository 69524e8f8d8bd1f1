"""The data set: a COCO annotation file's images in its own order, its people, and the category of the people.

The file is decoded into types, so every value is checked once, when it is loaded; what this project does not use is
dropped there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from dekr_infer.errors import DekrError, excerpt
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import read_regular

LARGEST_SIDE = 32_766  # pixels; OpenCV warps nothing larger
LARGEST_NUMBER = 1e12  # pixels, or square pixels; beyond any image
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Id = Annotated[int, msgspec.Meta(ge=1 - (1 << 63), le=(1 << 63) - 1)]  # what numpy, and so pycocotools, keeps exactly
Side = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIDE)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class ImageEntry(msgspec.Struct, frozen=True):
    """One image of the annotation file; `stem` names its tensors."""

    id: Id
    file_name: str
    height: Side
    width: Side

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return Size(self.height, self.width)

    @property
    def stem(self) -> str:
        """The file's name without folders and ending."""
        return PurePosixPath(self.file_name).stem


class PersonEntry(msgspec.Struct, frozen=True):
    """One annotated person, or a crowd: keypoints are x, y, visibility of each joint, in image pixels."""

    id: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # pycocotools takes 0 for "not matched"
    image_id: Id
    category_id: Id
    iscrowd: Literal[0, 1]
    area: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_NUMBER)]
    bbox: Annotated[list[Number], msgspec.Meta(min_length=4, max_length=4)]
    keypoints: list[Number]
    num_keypoints: int


class Category(msgspec.Struct, frozen=True):
    """A kind of object; the people's has the names of the joints."""

    id: Id
    name: str = ""
    keypoints: list[str] | None = None


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    categories: list[Category] = []


@dataclass(frozen=True)
class DataSet:
    """The images of a split, people in them or not, and the annotated people.

    `people` is `None` where the file has no annotations.
    """

    annotation: Path
    images: tuple[ImageEntry, ...]
    people: tuple[PersonEntry, ...] | None
    category: Category | None

    def first(self, count: int | None) -> DataSet:
        """Return the data set with only its first images; the people stay."""
        return replace(self, images=self.images[:count])

    def ground_truth(self) -> tuple[PersonEntry, ...]:
        """Return the annotated people, crowds too.

        Raises:
            DekrError: the annotation file has none.
        """
        if self.people is None:
            raise DekrError(f"{self.annotation}: has no annotations; the ten metrics need them")
        return self.people


def annotation_path(root: str | Path, split: str) -> Path:
    """Return where COCO keeps the keypoints of a split below its root."""
    return Path(root) / "annotations" / f"person_keypoints_{split}.json"


def load_data_set(root: str | Path, split: str, skeleton: Skeleton = COCO_17) -> DataSet:
    """Read and check the annotation file of a split.

    Raises:
        DekrError: the file is missing or no COCO annotation, an entry is not as COCO's are, or images cannot be told
            apart by id or tensor name.
    """
    path = annotation_path(root, split)
    try:
        content = msgspec.json.decode(read_regular(path).removeprefix(BYTE_ORDER_MARK), type=_File)
    except OSError as error:
        raise DekrError(f"{path}: cannot be read ({error.strerror}); set DATASET.ROOT to the COCO folder") from None
    except msgspec.ValidationError as error:
        reason = f"not a COCO annotation file that lists images ({_located(error)})"
        raise DekrError(f"{path}: {reason}; download it again") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DekrError(f"{path}: not a JSON file, or cut short ({error}); download it again") from None
    if not content.images:
        raise DekrError(f"{path}: lists no images; it must be a COCO annotation file")
    images = _checked_images(_entries(content.images, ImageEntry, "image", path), path)
    if content.annotations is msgspec.UNSET:
        return DataSet(path, images, None, content.categories[0] if content.categories else None)
    category = _person_category(content.categories, skeleton, path)
    people = _entries(content.annotations, PersonEntry, "annotation", path)
    _check_people(people, {image.id for image in images}, {entry.id for entry in content.categories}, skeleton, path)
    return DataSet(path, images, tuple(people), category)


T = TypeVar("T")


def _entries(raws: Sequence[msgspec.Raw], kind: type[T], what: str, path: Path) -> list[T]:
    decoder = msgspec.json.Decoder(kind)
    entries = []
    for index, raw in enumerate(raws):
        try:
            entries.append(decoder.decode(raw))
        except msgspec.ValidationError as error:
            raise DekrError(f"{path}: {what} {index + 1}{_label(raw)}: {_located(error)}; correct the file") from None
    return entries


def _label(raw: msgspec.Raw) -> str:
    """Return what identifies a bad entry: its id and its image's id or file name, where it has these."""
    value: Any = msgspec.json.decode(raw)
    keys = ("id", "image_id", "file_name") if isinstance(value, dict) else ()
    named = [f"{key} {excerpt(value[key])}" for key in keys if key in value]
    return f" ({', '.join(named)})" if named else ""


def _located(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint with the field in front: `height: Expected int >= 1`."""
    match = re.fullmatch(r"(.*) - at `\$?\.?(.*)`", str(error))
    return (f"{match[2]}: {match[1]}" if match else str(error)).replace("`", "")


def _checked_images(images: Iterable[ImageEntry], path: Path) -> tuple[ImageEntry, ...]:
    ids: dict[int, ImageEntry] = {}
    stems: dict[str, ImageEntry] = {}
    for image in images:
        name = image.file_name
        pure = PurePosixPath(name)
        if not pure.stem or pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise DekrError(f"{path}: {name!r} is no file name below the images folder; correct it")
        if "." in pure.stem:
            raise DekrError(f"{path}: {name}: ais_bench cuts names at the first dot; rename the image")
        other = ids.setdefault(image.id, image)
        if other is not image:
            raise DekrError(f"{path}: {other.file_name} and {name} have the same id {image.id}; correct one")
        other = stems.setdefault(image.stem, image)
        if other is not image:
            raise DekrError(
                f"{path}: {other.file_name} and {name} would write the same tensor {image.stem}.npy; rename one"
            )
    return tuple(ids.values())


def _person_category(categories: Sequence[Category], skeleton: Skeleton, path: Path) -> Category:
    if not categories:
        raise DekrError(f"{path}: lists no category; it must be a COCO keypoint annotation")
    category, joints = categories[0], skeleton.joints
    names = tuple(category.keypoints or joints)
    if len(names) != len(joints):
        raise DekrError(f"{path}: its people have {len(names)} joints, COCO's have {len(joints)}; use COCO's form")
    if names != joints and set(names) == set(joints):
        raise DekrError(f"{path}: its joints are COCO's in another order; bring them into COCO's order")
    return category


def _check_people(
    people: Sequence[PersonEntry], images: set[int], categories: set[int], skeleton: Skeleton, path: Path
) -> None:
    numbers: set[int] = set()
    for person in people:
        wrong = ""
        if person.id in numbers:
            raise DekrError(f"{path}: two annotations have the id {person.id}; correct one")
        numbers.add(person.id)
        if person.image_id not in images:
            wrong = "image_id: the file lists no such image"
        elif person.category_id not in categories:
            wrong = f"category_id: {person.category_id} is no category of the file"
        elif len(person.keypoints) != 3 * len(skeleton):
            wrong = f"keypoints: {len(person.keypoints)} numbers, expected {3 * len(skeleton)}"
        elif person.num_keypoints != (labelled := sum(value > 0 for value in person.keypoints[2::3])):
            wrong = f"num_keypoints: {person.num_keypoints}, but {labelled} joints are labelled"
        if wrong:
            raise DekrError(f"{path}: annotation {person.id} of image {person.image_id}: {wrong}; correct the file")
