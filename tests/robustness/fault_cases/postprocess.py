"""Faults of DEKR_postprocess.py: the dumps, what stands beside them, the rescoring net, the annotation, the outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dekr_infer.skeleton import COCO_17
from tests.robustness.fault_cases import Deed, Fault, at, disk_faults, freed, left, nothing
from tests.robustness.fault_cases.preprocess import annotated
from tests.support import corruption as spoil
from tests.support.workspace import Place, write_rescore_net

HEAT, OFFSET, FLIPPED = "out/b_0.npy", "out/b_1.npy", "out_flip/b_0.npy"
AGAIN, RUN, FITS = "make it again", "run the network", "correct the file"


def heat(change: Callable[[np.ndarray], np.ndarray]) -> Deed:
    return at(HEAT, spoil.resave, change)


def person(**changes: object) -> Deed:
    """The second person's annotation says something else."""
    return annotated(lambda content: content["annotations"][1].update(changes))


def category(**changes: object) -> Deed:
    return annotated(lambda content: content["categories"][0].update(changes))


def exchange(place: Place) -> None:
    """Heatmap and offset of an image under each other's name."""
    one, other = (place.inputs / name for name in (HEAT, OFFSET))
    first, second = one.read_bytes(), other.read_bytes()
    spoil.replace(one, second)
    spoil.replace(other, first)


def other_data_set(place: Place) -> None:
    for folder in ("out", "out_flip"):
        for path in (place.inputs / folder).iterdir():
            path.rename(path.with_name("x" + path.name))


def other_file(place: Place) -> None:
    spoil.replace(place.inputs / "rescore.pth", (place.inputs / "model.pth").read_bytes())


def net(**how: Any) -> Deed:
    """The rescoring net has other weights."""

    def deed(place: Place) -> None:
        (place.inputs / "rescore.pth").unlink()
        write_rescore_net(place.inputs / "rescore.pth", **how)

    return deed


HIDDEN = "RESCORE.HIDDEN_LAYER"
RESCORE, RESCORE_FILE = "rescore.pth", "RESCORE.MODEL_FILE"
CHECK = "check --cfg and the file"
RESULTS = "results/keypoints_val2017_results.json"

POSTPROCESS_FAULTS = [
    Fault(
        "dumps missing",
        lambda place: (place.inputs / "out_flip").rename(place.inputs / "x"),
        ("out_flip: 6 of 6 files are missing", RUN),
        real=True,
    ),
    Fault(
        "half of a pair missing",
        at(OFFSET, Path.unlink),
        ("out: 1 of 6 files are missing, the first is b_1.npy", "--allow_missing"),
    ),
    Fault("dump of another data set", other_data_set, ("xa_0.npy", "are not of person_keypoints_val2017.json", RUN)),
    Fault(
        "dump with files left over",
        at("out/zebra_0.npy", spoil.replace, b"x"),
        ("out: 1 of 7 files are not of", "zebra_0.npy", RUN),
    ),
    Fault("dump truncated", at(HEAT, spoil.cut, 0.5), ("out/b_0.npy: cut short", AGAIN), real=True),
    Fault("dump of zero bytes", at(FLIPPED, spoil.replace, b""), ("out_flip/b_0.npy: not a .npy file", AGAIN)),
    Fault("dump uint8", heat(lambda a: a.astype(np.uint8)), ("out/b_0.npy: holds uint8", AGAIN)),
    Fault("dump float64", heat(lambda a: a.astype(np.float64)), ("out/b_0.npy: holds float64", AGAIN)),
    Fault("dump int32", heat(lambda a: a.astype(np.int32)), ("out/b_0.npy: holds int32", AGAIN)),
    Fault("dump in Fortran order", heat(np.asfortranarray), ("out/b_0.npy: holds float32 in Fortran order", AGAIN)),
    Fault("dump of objects that run code", at(HEAT, spoil.trap_array), ("out/b_0.npy: holds object", AGAIN), real=True),
    Fault("dump NaN", heat(spoil.set_value(np.nan)), ("out/b_0.npy: holds NaN or infinite", RUN)),
    Fault(
        "dump infinite",
        at(FLIPPED, spoil.resave, spoil.set_value(np.inf)),
        ("out_flip/b_0.npy: holds NaN or infinite", RUN),
    ),
    Fault("offsets NaN", at(OFFSET, spoil.resave, spoil.set_value(np.nan)), ("out/b_1.npy: holds NaN", RUN)),
    Fault(
        "offsets beyond all bounds",
        at(OFFSET, spoil.resave, spoil.set_value(3e38)),
        ("out/b_1.npy", "beyond all bounds", RUN),
    ),
    Fault(
        "dump of another shape",
        heat(lambda a: np.ascontiguousarray(a[:, :17])),
        ("out/b_0.npy: has shape (1, 17, 128, 128)", "b.jpg needs", "it is of another"),
    ),
    Fault(
        "dump of another input size",
        heat(lambda a: np.ascontiguousarray(a[..., :96])),
        ("out/b_0.npy: has shape", "it is of another"),
    ),
    Fault("heatmap and offset exchanged", exchange, ("out/b_0.npy: has shape (1, 34", "it is of another")),
    Fault("dump with sides below zero", at(HEAT, spoil.reshape_header, "(-1, -18, 128, 128)"), ("out/b_0.npy", AGAIN)),
    Fault(
        "dump with sides beyond 64 bits",
        at(HEAT, spoil.reshape_header, f"({2**64 + 294912},)"),
        ("out/b_0.npy", AGAIN),
    ),
    Fault(
        "a pipe in a dump's place",
        at(HEAT, spoil.pipe),
        ("out/b_0.npy: cannot be read (not a regular file)", AGAIN),
        real=True,
    ),
    Fault("a folder in a dump's place", at(HEAT, spoil.folder), ("out/b_0.npy: cannot be read", AGAIN)),
    Fault(
        "summary beside the dump not JSON",
        at("out_summary.json", spoil.replace, b"{"),
        ("out_summary.json: not a JSON file", "write it again"),
    ),
    Fault(
        "summary beside the dump a list",
        at("out_summary.json", spoil.replace, b"[1]"),
        ("out_summary.json: not what these commands write", "delete it"),
    ),
    Fault(
        "one folder for both passes",
        nothing,
        ("--dump_dir and --dump_dir_flip name the same folder",),
        2,
        ("--dump_dir_flip", "../in/out"),
    ),
    Fault(
        "a link to itself in the dump's place",
        lambda place: os.symlink("loop", place.inputs / "loop"),
        ("loop: 6 of 6 files are missing", RUN),
        flags=("--dump_dir", "loop"),
    ),
    Fault(
        "rescoring net missing",
        at(RESCORE, Path.unlink),
        ("rescore.pth: no such rescoring", "RESCORE.VALID"),
        real=True,
    ),
    Fault(
        "rescoring net truncated",
        at(RESCORE, spoil.cut, 0.5),
        ("rescore.pth: damaged", "download it again, or save it"),
    ),
    Fault(
        "rescoring net that runs code", at(RESCORE, spoil.trap_checkpoint), ("rescore.pth", "more than weights", "save")
    ),
    Fault("model given as rescoring net", other_file, ("rescore.pth: not a checkpoint", "missing (l1.weight", CHECK)),
    Fault(
        "rescoring net of another width",
        net(hidden=200),
        ("rescore.pth: its hidden layers have 200 neurons", "HIDDEN_LAYER 200"),
    ),
    Fault("rescoring weights NaN", net(scale=float("nan")), ("rescore.pth", "not finite", CHECK)),
    Fault(
        "rescoring weights beyond all bounds",
        net(scale=1e12),
        ("rescore.pth: holds weights beyond all bounds", "download"),
    ),
    Fault("rescoring net of no width", nothing, (f"{HIDDEN} 0: from 1",), 2, (), (HIDDEN, "0")),
    Fault("rescoring net beyond memory", nothing, (f"{HIDDEN} 1000000000: from 1",), 2, (), (HIDDEN, "1000000000")),
    Fault(
        "unknown key",
        nothing,
        ("unknown key TEST.NMS_THR; did you mean TEST.NMS_THRE?",),
        2,
        pairs=("TEST.NMS_THR", "1.0"),
    ),
    Fault("pairs uneven", nothing, ("KEY VALUE pairs are uneven", "no partner"), 2, pairs=("TEST.FLIP_TEST",)),
    Fault("threshold infinite", nothing, ("TEST.NMS_THRE expects a finite number",), 2, (), ("TEST.NMS_THRE", "1e999")),
    Fault("threshold a word", nothing, ("TEST.NMS_THRE expects a number",), 2, (), ("TEST.NMS_THRE", "high")),
    Fault(
        "annotation without people's list",
        annotated(lambda c: c.pop("annotations")),
        ("has no annotations", "need them"),
    ),
    Fault(
        "people with 14 joints", person(keypoints=[1.0] * 42), ("keypoints: 42 numbers, expected 51", FITS), real=True
    ),
    Fault("joint that is a text", person(keypoints=["1"] * 51), ("keypoints[0]: Expected float, got str", FITS)),
    Fault("joint NaN", person(keypoints=[float("nan")] * 51), ("not a JSON file", "invalid character", "download")),
    Fault("area a text", person(area="12"), ("area: Expected float, got str", FITS)),
    Fault("area below zero", person(area=-1.0), ("area: Expected float >= 0", FITS)),
    Fault("person of no category", person(category_id=9), ("category_id: 9 is no category", FITS)),
    Fault("annotation number 0", person(id=0), ("id: Expected int >= 1", FITS)),
    Fault("duplicate annotation ids", person(id=1), ("two annotations have the id 1", "correct one")),
    Fault(
        "annotation that is a number",
        annotated(lambda c: c["annotations"].append(7)),
        ("annotation 4: Expected object, got int", FITS),
    ),
    Fault("no category", annotated(lambda c: c.pop("categories")), ("lists no category", "must be a COCO")),
    Fault("category of 14 joints", category(keypoints=["x"] * 14), ("has 14 joints, expected 17", "use a network")),
    Fault(
        "joints in another order",
        category(keypoints=COCO_17.joints[::-1]),
        ("COCO's joints in another order", "bring its keypoints"),
    ),
    Fault(
        "earlier metrics missing",
        nothing,
        ("none.json: cannot be read", "check its name"),
        flags=("--compare", "none.json"),
    ),
    Fault(
        "a pipe in the earlier metrics' place",
        at("m.json", spoil.pipe),
        ("m.json: cannot be read (not a regular file)", "check its name"),
        flags=("--compare", "m.json"),
    ),
    Fault(
        "weights a device",
        nothing,
        ("/dev/zero: no such rescoring", "VALID"),
        pairs=(RESCORE_FILE, "/dev/zero"),
    ),
    Fault(
        "earlier metrics another file",
        at("m.json", spoil.replace, b"{}"),
        ("m.json: lacks the ten metrics", "--compare expects"),
        flags=("--compare", "m.json"),
    ),
    Fault(
        "a file in the output's place",
        left("results", spoil.replace, b"x"),
        ("results", "cannot be written", "name another"),
        mend=freed("results"),
    ),
    Fault(
        "a folder in a file's place",
        left(RESULTS, spoil.folder),
        ("results.json: cannot be written", "name another"),
        mend=freed(RESULTS),
    ),
    *disk_faults("8k", "results.json", "w/results", real=True),
]
