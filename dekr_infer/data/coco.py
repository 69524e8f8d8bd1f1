"""The data set: a COCO annotation file's images in its own order, its people, and the category of the people.

The file is decoded into types, so every value is checked once, when it is loaded; what this project does not use is
dropped there.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from dekr_infer.data.images import LARGEST_SIDE
from dekr_infer.errors import DekrError, excerpt
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17, Skeleton
from dekr_infer.storage.atomic import read_regular

LONGEST_STEM = 240  # bytes; file systems allow 255, and endings follow
LARGEST_NUMBER = 1e12  # pixels, or square pixels; beyond any image
CROWD_AREA = 0.53  # of a person's box: what CrowdPose's evaluation takes for a person's area
SMALLEST_AREA = 0.05  # of the box of a person's joints; COCO's people have 0.16 and more
IMAGES_ONLY = "image_info_"  # the beginning of the name of a file without annotations
CROWD_FOLDER = "json"  # of CrowdPose's annotation files
PERSON = "person"  # COCO's name of the people's category
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Id = Annotated[int, msgspec.Meta(ge=1 - (1 << 63), le=(1 << 63) - 1)]  # what numpy, and so pycocotools, keeps exactly
Side = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class _Image(msgspec.Struct, rename={"crowd_index": "crowdIndex"}):
    id: Id
    file_name: str
    height: Side
    width: Side
    crowd_index: Annotated[float, msgspec.Meta(ge=0)] | None = None


@dataclass(frozen=True)
class ImageEntry:
    """One image of the annotation file; `stem` names its tensors, see `tensor_names`.

    `crowd_index` says how much people overlap, from 0 on, in CrowdPose's files.
    """

    id: int
    file_name: str
    size: Size
    stem: str
    crowd_index: float | None = None


class PersonEntry(msgspec.Struct, frozen=True):
    """One annotated person, or a crowd: keypoints are x, y, visibility of each joint, in image pixels."""

    id: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # pycocotools takes 0 for "not matched"
    image_id: Id
    category_id: Id
    area: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_NUMBER)]
    bbox: Annotated[list[Number], msgspec.Meta(min_length=4, max_length=4)]
    keypoints: list[Number]
    iscrowd: Literal[0, 1] = 0
    num_keypoints: int | None = None

    @property
    def labelled(self) -> int:
        """The number of labelled joints."""
        return sum(value > 0 for value in self.keypoints[2::3])


class _CrowdPersonEntry(PersonEntry, frozen=True, kw_only=True):
    """A person of CrowdPose, whose files name no area."""

    area: float = 0.0

    def measured(self) -> PersonEntry:
        """Return the person with the area that CrowdPose's evaluation gives it."""
        return msgspec.structs.replace(self, area=CROWD_AREA * abs(self.bbox[2] * self.bbox[3]))


class Category(msgspec.Struct, frozen=True):
    """A kind of object; the people's has the names of the joints."""

    id: Id
    name: str = ""
    keypoints: list[str] | None = None


class _Head(msgspec.Struct):
    """What decides whether an annotation is one of the people: other kinds of objects are not looked at."""

    category_id: Id
    image_id: Id
    keypoints: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    categories: list[Category] = []


@dataclass(frozen=True)
class DataSet:
    """The images of a split, people in them or not, and the annotated people.

    Args:
        annotation: the file.
        people: `None` where the file has no annotations.
        category: of the people.
        warnings: what is odd about the annotation, by name; it does not stop an evaluation but changes its metrics.
        skeleton: of the people.
    """

    annotation: Path
    images: tuple[ImageEntry, ...]
    people: tuple[PersonEntry, ...] | None
    category: Category | None
    warnings: dict[str, str] = field(default_factory=dict)
    skeleton: Skeleton = COCO_17

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

    def check_annotations(self) -> None:
        """Check that people are annotated, unless the file's name says that it only lists images.

        Raises:
            DekrError: the annotation file has none.
        """
        if not self.annotation.name.startswith(IMAGES_ONLY):
            self.ground_truth()


def annotation_path(root: str | Path, split: str) -> Path:
    """Return the annotation file of a split below a data set's root: COCO's, or the one that is there.

    COCO keeps the keypoints of a split in `annotations/person_keypoints_<split>.json`, and the images of one without
    annotations, such as test-dev2017, in `annotations/image_info_<split>.json`. CrowdPose has
    `json/crowdpose_<split>.json`.
    """
    folder = Path(root) / "annotations"
    keypoints, images = folder / f"person_keypoints_{split}.json", folder / f"{IMAGES_ONLY}{split}.json"
    usual, other = (images, keypoints) if split.startswith("test-") else (keypoints, images)
    crowd = Path(root) / CROWD_FOLDER / f"crowdpose_{split}.json"
    return next((path for path in (usual, other, crowd) if path.exists()), usual)


def load_data_set(root: str | Path, split: str, category: str | None = None, skeleton: Skeleton = COCO_17) -> DataSet:
    """Read and check the annotation file of a split.

    Args:
        root: the COCO folder.
        split: for example `val2017`.
        category: the name of the people's category, where several have keypoints.
        skeleton: the joints that the people must have.
    Raises:
        DekrError: the file is missing or no COCO annotation, an entry is not as COCO's are, images cannot be told
            apart by id or tensor name, or the people's category is not clear.
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
    images = _checked_images(_entries(content.images, _Image, "image", path), path)
    if content.annotations is msgspec.UNSET:
        person = next((entry for entry in content.categories if entry.name == (category or PERSON)), None)
        return DataSet(path, images, None, person, skeleton=skeleton)
    warnings: dict[str, str] = {}
    heads = _entries(content.annotations, _Head, "annotation", path)
    chosen = _person_category(content.categories, heads, category, skeleton, path)
    known = {entry.id for entry in content.categories}
    if unknown := [index for index, head in enumerate(heads, 1) if head.category_id not in known]:
        raise DekrError(
            f"{path}: annotation {unknown[0]}: category_id: {heads[unknown[0] - 1].category_id} is no category of the "
            "file; correct the file"
        )
    if (odd := _odd_joint_names(chosen, skeleton)) is not None:
        warnings["joint_names"] = f"{path}: category {chosen.name} {odd}; check that these are the network's joints"
    listed = {image.id for image in images}
    own = [
        (index, raw)
        for index, (head, raw) in enumerate(zip(heads, content.annotations, strict=True))
        if head.category_id == chosen.id
    ]
    kind = _CrowdPersonEntry if all(image.crowd_index is not None for image in images) else PersonEntry
    people = _entries([raw for _, raw in own], kind, "annotation", path, [index for index, _ in own])
    people = [person.measured() if isinstance(person, _CrowdPersonEntry) else person for person in people]
    _check_people(people, skeleton, path)
    if unlisted := [person for person in people if person.image_id not in listed]:
        warnings["unlisted_images"] = (
            f"{path}: {len(unlisted)} annotations are of images that it does not list, the first is annotation "
            f"{unlisted[0].id} of image {unlisted[0].image_id}; they are ignored"
        )
    people = [person for person in people if person.image_id in listed]
    warnings |= _oddities(people, {image.id: image.size for image in images}, path)
    return DataSet(path, images, tuple(_counted(person) for person in people), chosen, warnings, skeleton)


T = TypeVar("T")


def _entries(
    raws: Sequence[msgspec.Raw], kind: type[T], what: str, path: Path, positions: Sequence[int] | None = None
) -> list[T]:
    """Decode entries of the file; raise for the first wrong one, with its position and the number of wrong ones."""
    decoder = msgspec.json.Decoder(kind)
    entries, first, wrong = [], "", 0
    for index, raw in enumerate(raws):
        try:
            entries.append(decoder.decode(raw))
        except msgspec.ValidationError as error:
            wrong += 1
            number = (positions[index] if positions else index) + 1
            first = first or f"{what} {number}{_label(raw)}: {_located(error)}"
    if wrong:
        more = f" (the first of {wrong} wrong ones)" if wrong > 1 else ""
        raise DekrError(f"{path}: {first}{more}; correct the file")
    return entries


def _label(raw: msgspec.Raw) -> str:
    """Return what identifies a bad entry: its id and its image's id or file name, where it has these."""
    try:
        value: Any = msgspec.json.decode(raw)
    except msgspec.MsgspecError:  # for example a number of 400 digits
        return ""
    keys = ("id", "image_id", "file_name") if isinstance(value, dict) else ()
    named = [f"{key} {excerpt(value[key])}" for key in keys if key in value]
    return f" ({', '.join(named)})" if named else ""


def _located(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint with the field in front: `height: Expected int >= 1`."""
    match = re.fullmatch(r"(.*) - at `\$?\.?(.*)`", str(error))
    return (f"{match[2]}: {match[1]}" if match else str(error)).replace("`", "")


def tensor_names(file_names: Sequence[str]) -> list[str]:
    """Return the name of each image's tensors: the file's name without folders and ending.

    Where that has a dot, at which ais_bench cuts, or more than 240 bytes, or is the name of several images, its letters
    and digits are followed by a hash of the whole file name. The records beside the tensors hold both names.
    """
    stems = [PurePosixPath(name.replace("\\", "/")).stem for name in file_names]
    uses = Counter(stems)
    return [
        stem
        if uses[stem] == 1 and "." not in stem and len(stem.encode()) <= LONGEST_STEM
        else f"{re.sub('[^A-Za-z0-9_-]', '_', stem)[:64]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        for stem, name in zip(stems, file_names, strict=True)
    ]


def _checked_images(images: Sequence[_Image], path: Path) -> tuple[ImageEntry, ...]:
    ids: dict[int, str] = {}
    names: dict[str, ImageEntry] = {}
    for image, stem in zip(images, tensor_names([image.file_name for image in images]), strict=True):
        name, size = image.file_name, Size(image.height, image.width)
        pure = PurePosixPath(name.replace("\\", "/"))
        if not pure.stem or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise DekrError(f"{path}: {name!r} is no file name below the images folder; correct it")
        if max(size) > LARGEST_SIDE:
            raise DekrError(
                f"{path}: {name} is {size} pixels; this program takes at most {LARGEST_SIDE} a side; make it smaller"
            )
        if image.id in ids:
            raise DekrError(f"{path}: {ids[image.id]} and {name} have the same id {image.id}; correct one")
        if stem in names:
            other = names[stem]
            raise DekrError(f"{path}: images {other.id} and {image.id} are the same file, {name}; remove one of them")
        ids[image.id] = name
        names[stem] = ImageEntry(image.id, name, size, stem, image.crowd_index)
    return tuple(names.values())


def _person_category(
    categories: Sequence[Category],
    heads: Sequence[_Head],
    wanted: str | None,
    skeleton: Skeleton,
    path: Path,
) -> Category:
    """Choose the category that has keypoints and that the labelled people use."""
    if not categories:
        raise DekrError(f"{path}: lists no category; it must be a COCO keypoint annotation")
    used = Counter(head.category_id for head in heads if bytes(head.keypoints) not in (b"null", b"[]"))
    named = [category for category in categories if category.keypoints]
    fitting = [category for category in named if category.id in used] or named
    if not fitting:  # some tools leave the joints' names out
        fitting = [category for category in categories if category.id in used] or list(categories)
    if wanted is not None:
        fitting = [category for category in categories if category.name == wanted]
        if not fitting:
            known = ", ".join(excerpt(category.name) for category in categories)
            raise DekrError(f"{path}: has no category {wanted}; its categories are {known}; name one with --category")
    if len(fitting) > 1:
        names = ", ".join(excerpt(category.name or category.id) for category in fitting)
        raise DekrError(f"{path}: {len(fitting)} categories have keypoints ({names}); name one with --category")
    category = fitting[0]
    found, expected = len(category.keypoints or skeleton.joints), len(skeleton)
    if found != expected:
        raise DekrError(
            f"{path}: category {excerpt(category.name)} has {found} joints, expected {expected}; "
            "use a network and a skeleton of this data set"
        )
    names_found, names_expected = (
        _known_names(names or skeleton.joints, skeleton) for names in (category.keypoints, None)
    )
    if names_found != names_expected and sorted(names_found) == sorted(names_expected):
        raise DekrError(
            f"{path}: category {excerpt(category.name)} has {skeleton.name}'s joints in another order; bring its "
            f"keypoints and those of every annotation into {skeleton.name}'s order"
        )
    return category


def _plain_names(names: Iterable[str]) -> list[str]:
    """Return joint names as they are compared: without case, `_`, `-` and spaces."""
    return [re.sub(r"[-_ ]", "", name).lower() for name in names]


def _known_names(names: Iterable[str], skeleton: Skeleton) -> list[str]:
    """Return joint names as they are compared, those of the skeleton in place of their aliases."""
    plain = _plain_names(skeleton.joints)
    meant = {
        alias: name for name, aliases in zip(plain, skeleton.aliases, strict=False) for alias in _plain_names(aliases)
    }
    return [meant.get(name, name) for name in _plain_names(names)]


def _odd_joint_names(category: Category, skeleton: Skeleton) -> str | None:
    """Return how the joints' names differ from the skeleton's; `None` where they do not."""
    pairs = [
        (excerpt(found), expected)
        for found, expected in zip(category.keypoints or (), skeleton.joints, strict=False)
        if _known_names([found], skeleton) != _known_names([expected], skeleton)
    ]
    if not pairs:
        return None
    shown = ", ".join(f"{found} where {skeleton.name} has {expected}" for found, expected in pairs[:2])
    return f"names {len(pairs)} joints otherwise: {shown}"


def _check_people(people: Sequence[PersonEntry], skeleton: Skeleton, path: Path) -> None:
    numbers: set[int] = set()
    for person in people:
        if person.id in numbers:
            raise DekrError(f"{path}: two annotations have the id {person.id}; correct one")
        numbers.add(person.id)
        if len(person.keypoints) != 3 * len(skeleton):
            raise DekrError(
                f"{path}: annotation {person.id} of image {person.image_id}: keypoints: {len(person.keypoints)} "
                f"numbers, expected {3 * len(skeleton)}; correct the file"
            )


def _counted(person: PersonEntry) -> PersonEntry:
    return msgspec.structs.replace(person, num_keypoints=person.labelled)


def _oddities(people: Sequence[PersonEntry], sizes: dict[int, Size], path: Path) -> dict[str, str]:
    """Return warnings about entries that are valid but change the metrics or cannot be meant."""
    counted = [p for p in people if p.num_keypoints is not None and p.num_keypoints != p.labelled]
    judged = [person for person in people if not person.iscrowd and person.labelled]
    small = [person for person in judged if person.area < SMALLEST_AREA * _extent(person) or not person.area]
    far = [person for person in judged if _is_far(person, sizes[person.image_id])]
    shares = [person for person in judged if _is_share(person, sizes[person.image_id])]
    kinds = {
        "num_keypoints": (counted, "have a num_keypoints that disagrees with their labelled joints; it was recounted"),
        "area": (small, "have an area far below the extent of their own joints, so hits count as misses; set area to "
                        "the person's area in square pixels"),
        "joints_outside": (far, "have joints far outside their images; check the annotation's coordinates"),
        "joints_normalised": (shares, "have joints between 0 and 1, which are no pixels; multiply them by the size"),
    }  # fmt: skip
    return {
        name: f"{path}: {len(wrong)} of {len(people)} people {what}; the first is annotation {wrong[0].id} of image "
        f"{wrong[0].image_id}"
        for name, (wrong, what) in kinds.items()
        if wrong
    }


def _places(person: PersonEntry) -> list[tuple[float, float]]:
    values = person.keypoints
    return [(x, y) for x, y, v in zip(values[::3], values[1::3], values[2::3], strict=True) if v > 0]


def _extent(person: PersonEntry) -> float:
    """Return the area of the box of the labelled joints; with fewer than three joints it says nothing."""
    xs, ys = zip(*_places(person), strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys)) if len(xs) > 2 else 0.0


def _is_far(person: PersonEntry, size: Size) -> bool:
    """Return whether all joints are more than the image's size away from the image."""
    return all(not (-size.w < x < 2 * size.w and -size.h < y < 2 * size.h) for x, y in _places(person))


def _is_share(person: PersonEntry, size: Size) -> bool:
    """Return whether the joints look normalised to the image's size."""
    places = _places(person)
    return min(size) > 8 and len(places) > 2 and all(0 <= x <= 1 and 0 <= y <= 1 for x, y in places)
