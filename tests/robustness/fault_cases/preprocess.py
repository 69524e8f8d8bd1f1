"""Faults of DEKR_preprocess.py: the zip, the images, the annotation file, the configuration, the output folders."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dekr_infer.geometry import Size
from dekr_infer.storage.atomic import UNFINISHED
from tests.robustness.fault_cases import Deed, Fault, at, disk_faults, freed, nothing
from tests.support import corruption as spoil
from tests.support.coco_files import write_images
from tests.support.images import colourful, encode
from tests.support.workspace import Place

ZIP, ANNOTATION = Path("coco/images/val2017.zip"), Path("coco/annotations/person_keypoints_val2017.json")
LOCK = f".prep_data{UNFINISHED}"
FETCH = "download it again"


def picture(change: Callable[[bytes], bytes]) -> Deed:
    """The second image's bytes are changed; the zip and its checksums are fine."""
    return lambda place: spoil.change_member(place.inputs / "coco", "b.jpg", change)


def without_member(place: Place) -> None:
    pictures = spoil.members(place.inputs / ZIP)
    (place.inputs / ZIP).unlink()
    write_images(place.inputs / "coco", {name: pictures[name] for name in ("a.jpg", "b.jpg")})


def flip_bit(place: Place) -> None:
    data = bytearray((place.inputs / ZIP).read_bytes())
    data[bytes(data).index(spoil.members(place.inputs / ZIP)["b.jpg"]) + 300] ^= 1
    spoil.replace(place.inputs / ZIP, bytes(data))


def annotated(change: Callable[[dict[str, Any]], object]) -> Deed:
    """The annotation file's content is changed."""

    def deed(place: Place) -> None:
        content = json.loads((place.inputs / ANNOTATION).read_bytes())
        change(content)
        spoil.replace(place.inputs / ANNOTATION, json.dumps(content).encode())

    return deed


def image(**changes: object) -> Deed:
    """The second image's entry says something else."""
    return annotated(lambda content: content["images"][1].update(changes))


def png_of(width: int, height: int) -> Callable[[bytes], bytes]:
    """A change: a PNG whose header says this size."""

    def change(data: bytes) -> bytes:
        whole = encode(colourful(Size(52, 52)))
        head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + whole[24:29]
        return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]

    return change


def as_png(data: bytes) -> bytes:
    return encode(colourful(Size(52, 52)))


def as_heic(data: bytes) -> bytes:
    return b"\0\0\0\x18ftypheic" + data


def hole(data: bytes) -> bytes:
    """A change: bytes in the middle are gone."""
    return data[: len(data) * 2 // 3] + data[-200:]


def config(text: str) -> Deed:
    return lambda place: spoil.replace(place.inputs / "c.yaml", text.encode())


def foreign_tensor(place: Place) -> None:
    spoil.replace(place.outputs / "prep_data_flip" / "zebra.npy", b"x")


def unrecorded_tensor(place: Place) -> None:
    spoil.replace(place.outputs / "prep_data" / "b.npy", b"x")


def link_elsewhere(place: Place) -> None:
    spoil.replace(place.folder / "precious" / "1-a.npy", b"x")
    os.symlink(place.folder / "precious", place.outputs / LOCK)


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b]\n"
WITH_FILE = ("--cfg", "c.yaml")

PREPROCESS_FAULTS = [
    Fault("zip missing", at(ZIP, Path.unlink), ("val2017.zip", "not there", "set DATASET.ROOT"), real=True),
    Fault("zip is text", at(ZIP, spoil.replace, b"<html>"), ("val2017.zip: not a zip file", FETCH)),
    Fault("zip is empty", at(ZIP, spoil.replace, b""), ("val2017.zip: not a zip file", FETCH)),
    Fault("zip truncated", at(ZIP, spoil.cut, 0.7), ("val2017.zip: not a zip file, or cut short", FETCH), real=True),
    Fault("zip is a folder", at(ZIP, spoil.folder), ("val2017.zip", "not there", "put COCO's images there")),
    Fault("zip of a later version", at(ZIP, spoil.set_zip_fields, {4: b"\xff"}, {6: b"\xff"}), ("val2017.zip", FETCH)),
    Fault("zip with a member missing", without_member, ("val2017.zip: 1 of 3 images are missing", "c.jpg", "download")),
    Fault(
        "zip with a bad checksum", flip_bit, ("val2017.zip: b.jpg: Bad CRC-32", "download this file again"), real=True
    ),
    Fault(
        "zip encrypted",
        at(ZIP, spoil.set_zip_fields, {6: b"\x01"}, {8: b"\x01"}),
        ("a.jpg: encrypted", "download this"),
    ),
    Fault(
        "zip of an unknown method",
        at(ZIP, spoil.set_zip_fields, {8: b"\x63"}, {10: b"\x63"}),
        ("a.jpg: is packed by another method than deflate", "pack the zip again"),
    ),
    Fault(
        "zip that would unpack to gigabytes",
        at(ZIP, spoil.set_zip_fields, {}, {24: b"\xff\xff\xff\x7f"}),
        ("a.jpg: announces 2,147,483,647 bytes", "download this"),
    ),
    Fault("JPEG truncated", picture(lambda data: data[:-20]), ("b.jpg: a damaged JPEG, pixels", "download"), real=True),
    Fault(
        "JPEG cut, with an end marker",
        picture(lambda data: data[:-20] + data[-2:]),
        ("b.jpg: a damaged JPEG, pixels are lost (Corrupt JPEG data: premature end of data segment)", "download"),
        real=True,
    ),
    Fault("JPEG with a hole", picture(hole), ("b.jpg: a damaged JPEG, pixels are lost (Corrupt JPEG data", "download")),
    Fault(
        "PNG cut", picture(lambda data: as_png(data)[:-12]), ("b.jpg: a damaged PNG, its beginning or end", "download")
    ),
    Fault("JPEG empty", picture(lambda data: b""), ("val2017.zip: b.jpg: not an image", "download")),
    Fault("JPEG header only", picture(lambda data: data[:20]), ("val2017.zip: b.jpg: not an image", "download")),
    Fault("not an image", picture(lambda data: b"<html>no</html>"), ("b.jpg: is HTML by its content", "download")),
    Fault("HEIC under a JPEG's name", picture(as_heic), ("b.jpg: is HEIC by its content", "save it as JPEG or PNG")),
    Fault("size other than annotated", image(width=53), ("b.jpg: is 52x52 pixels, the annotation says 52x53", "both")),
    Fault(
        "JPEG announces gigabytes", picture(spoil.announce(60_000, 60_000)), ("b.jpg: is 60000x60000", "download both")
    ),
    Fault("PNG announces gigabytes", picture(png_of(60_000, 60_000)), ("b.jpg: is 60000x60000", "download both")),
    Fault(
        "JPEG announces more than it holds", picture(spoil.announce(9_000, 9_000)), ("is 9000x9000", "download both")
    ),
    Fault("annotation missing", at(ANNOTATION, Path.unlink), (ANNOTATION.name, "set DATASET.ROOT"), real=True),
    Fault("annotation is a folder", at(ANNOTATION, spoil.folder), (ANNOTATION.name, "set DATASET.ROOT")),
    Fault(
        "a pipe in the annotation's place", at(ANNOTATION, spoil.pipe), (ANNOTATION.name, "(not a regular file)", "set")
    ),
    Fault("annotation not JSON", at(ANNOTATION, spoil.replace, b"<html>"), (ANNOTATION.name, "not a JSON file", FETCH)),
    Fault("annotation truncated", at(ANNOTATION, spoil.cut, 0.8), (ANNOTATION.name, "cut short", FETCH)),
    Fault("annotation not UTF-8", at(ANNOTATION, spoil.replace, b'{"a": "\xff"}'), (ANNOTATION.name, FETCH)),
    Fault("annotation nested without end", at(ANNOTATION, spoil.replace, b"[" * 200_000), (ANNOTATION.name, FETCH)),
    Fault("no images", annotated(lambda content: content["images"].clear()), ("lists no images", "must be a COCO")),
    Fault(
        "images not a list",
        annotated(lambda content: content.update(images={})),
        ("images: Expected array, got object", "COCO"),
    ),
    Fault(
        "image without a width",
        annotated(lambda content: content["images"][1].pop("width")),
        ("b.jpg", "missing required field width", "correct the file"),
    ),
    Fault("duplicate ids", image(id=1000), ("a.jpg and b.jpg have the same id 1000", "correct one")),
    Fault("id beyond 64 bits", image(id=10**30), ("b.jpg", "id: ", "correct the file")),
    Fault("image listed twice", image(file_name="a.jpg"), ("are the same file, a.jpg", "remove one")),
    Fault("name of no file", image(file_name="b.v2.jpg"), ("1 of 3 images", "looked for val2017/b.v2.jpg", "download")),
    Fault("name that leads out", image(file_name="../b.jpg"), ("'../b.jpg' is no file name below", "correct it")),
    Fault("name from the root", image(file_name="/etc/b.jpg"), ("'/etc/b.jpg' is no file name", "correct it")),
    Fault("name with a NUL", image(file_name="b\0.jpg"), ("no file name below", "correct it")),
    Fault("height 0", image(height=0), ("b.jpg", "height: Expected int >= 1", "correct the file")),
    Fault("height infinite", image(height=float("inf")), ("not a JSON file", "invalid character", FETCH)),
    Fault("height of a text", image(height="52"), ("b.jpg", "height: Expected int, got str", "correct the file")),
    Fault(
        "wider than OpenCV warps", image(width=40_000), ("b.jpg is 52x40000", "this program takes at most", "smaller")
    ),
    Fault(
        "unknown key",
        nothing,
        ("unknown key TEST.FLIP_TSET; did you mean TEST.FLIP_TEST?",),
        2,
        (),
        ("TEST.FLIP_TSET", "1"),
        real=True,
    ),
    Fault("pairs uneven", nothing, ("KEY VALUE pairs are uneven", "no partner"), 2, pairs=("TEST.FLIP_TEST",)),
    Fault(
        "input size of another network",
        nothing,
        ("DATASET.INPUT_SIZE 640", "add"),
        2,
        (),
        ("DATASET.INPUT_SIZE", "640"),
    ),
    Fault("split that is a path", nothing, ("DATASET.TEST '../x'",), 2, pairs=("DATASET.TEST", "../x")),
    Fault("configuration missing", nothing, ("c.yaml: cannot be read", "--cfg expects"), 2, WITH_FILE),
    Fault("configuration a device", nothing, ("/dev/zero: cannot be read (not",), 2, ("--cfg", "/dev/zero")),
    Fault("YAML with an unknown key", config("TEST:\n  NMS_THR: 1\n"), ("c.yaml: unknown key", "mean"), 2, WITH_FILE),
    Fault(
        "YAML with a Python tag",
        config("A: !!python/object/apply:os.mkdir [sprung]"),
        ("c.yaml: not a plain YAML", "correct the file"),
        2,
        WITH_FILE,
        real=True,
    ),
    Fault("YAML cut in a string", config('TEST: "abc'), ("c.yaml: not a plain YAML", "correct the file"), 2, WITH_FILE),
    Fault(
        "YAML of aliases", config(ALIASES), ("c.yaml", "aliases are not supported", "correct the file"), 2, WITH_FILE
    ),
    Fault(
        "YAML with an impossible date",
        config("A: 2001-13-41"),
        ("c.yaml: not a plain", "correct the file"),
        2,
        WITH_FILE,
    ),
    Fault(
        "YAML nested without end", config("[" * 5000), ("c.yaml: not a plain YAML", "correct the file"), 2, WITH_FILE
    ),
    Fault(
        "both outputs the same folder", nothing, ("name the same folder",), 2, ("--output_flip", "../w/../w/prep_data")
    ),
    Fault(
        "a link to itself in the output's place",
        lambda place: os.symlink("prep_data", place.outputs / "prep_data"),
        ("prep_data: cannot be created", "free this name"),
        mend=freed("prep_data"),
    ),
    Fault(
        "a file in the output's place",
        lambda place: spoil.replace(place.outputs / "prep_data", b"x"),
        ("prep_data: cannot be created", "free this name"),
        mend=freed("prep_data"),
    ),
    Fault(
        "foreign tensor in the output",
        foreign_tensor,
        ("prep_data_flip: 1 .npy files do not belong", "zebra.npy", "delete them"),
        mend=freed("prep_data_flip/zebra.npy"),
    ),
    Fault(
        "a tensor without a record",
        unrecorded_tensor,
        ("prep_data: holds 1 unrecorded tensors, the first is b.npy", "--overwrite"),
        mend=freed("prep_data/b.npy"),
    ),
    Fault(
        "a damaged record",
        lambda place: spoil.replace(place.outputs / "prep_data_record.jsonl", b"{}\n"),
        ("prep_data_record.jsonl: line 1 is damaged", "delete it together with"),
        mend=freed("prep_data_record.jsonl"),
    ),
    Fault(
        "a file where unfinished ones are written",
        lambda place: spoil.replace(place.outputs / LOCK, b"x"),
        ("prep_data: cannot be created (File exists)", "free this name"),
        mend=freed(LOCK),
    ),
    Fault(
        "a link where unfinished ones are written",
        link_elsewhere,
        ("prep_data: cannot be created", "free this name"),
        mend=freed(LOCK),
    ),
    *disk_faults("5m", "prep_data", "w/prep_data", real=True),
]
