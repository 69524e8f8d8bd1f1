"""Faults of DEKR_pth2onnx.py: the checkpoint, the network described, the output."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.robustness.fault_cases import Fault, at, disk_faults, freed, left, nothing
from tests.support import corruption as spoil
from tests.support.workspace import Place

MODEL = "model.pth"
SAVE_AGAIN = "download it again, or save it"
CHECK = "check --cfg and the file"


def other_file(place: Place) -> None:
    """The rescoring net's file under the model's name."""
    spoil.replace(place.inputs / MODEL, (place.inputs / "rescore.pth").read_bytes())


def not_a_number(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value * float("nan") if value.is_floating_point() else value for key, value in state.items()}


OVER_IT = ("--output", "model.pth")
WIDER = ("MODEL.SPEC.HEAD_HEATMAP.NUM_CHANNELS", "6")

EXPORT_FAULTS = [
    Fault("checkpoint missing", at(MODEL, Path.unlink), ("model.pth: no such checkpoint", "README"), real=True),
    Fault("checkpoint is a folder", at(MODEL, spoil.folder), ("model.pth: no such checkpoint", "README"), again=False),
    Fault("checkpoint empty", at(MODEL, spoil.replace, b""), ("model.pth: damaged", SAVE_AGAIN), again=False),
    Fault("checkpoint truncated", at(MODEL, spoil.cut, 0.8), ("model.pth: damaged", SAVE_AGAIN), again=False),
    Fault("checkpoint is text", at(MODEL, spoil.replace, b"<html>"), ("model.pth", SAVE_AGAIN), again=False),
    Fault("checkpoint that runs code", at(MODEL, spoil.trap_checkpoint), ("more than weights", SAVE_AGAIN), real=True),
    Fault("checkpoint of another width", nothing, ("model.pth: not a", "ill-shaped", CHECK), pairs=WIDER, again=False),
    Fault("rescoring net given as model", other_file, ("model.pth", "unexpected (l1.weight", CHECK), again=False),
    Fault(
        "weights are NaN", at(MODEL, spoil.change_state, not_a_number), ("model.pth", "not finite", CHECK), again=False
    ),
    Fault(
        "tensor that claims a terabyte",
        at(MODEL, spoil.change_state, spoil.vast),
        ("model.pth", "ill-shaped", CHECK),
        again=False,
    ),
    Fault(
        "no state dict",
        at(MODEL, spoil.change_state, lambda state: list(state)),
        ("model.pth: holds no state dict", "save"),
        again=False,
    ),
    Fault(
        "no checkpoint named",
        nothing,
        ("no checkpoint is named; add TEST.MODEL_FILE",),
        2,
        (),
        ("TEST.MODEL_FILE", ""),
        again=False,
    ),
    Fault("output over the checkpoint", nothing, ("--output model.pth is the checkpoint",), 2, OVER_IT, again=False),
    Fault(
        "unknown key",
        nothing,
        ("unknown key TEST.MODEL_FIEL; did you mean TEST.MODEL_FILE?",),
        2,
        pairs=("TEST.MODEL_FIEL", "x.pth"),
        again=False,
    ),
    Fault("pairs uneven", nothing, ("pairs are uneven", "no partner"), 2, pairs=("TEST.FLIP_TEST",), again=False),
    Fault("width below zero", nothing, ("MODEL.SPEC: no network", "correct"), 2, (), (WIDER[0], "-3"), again=False),
    Fault(
        "width beyond memory",
        nothing,
        ("MODEL.SPEC: has 10000000000, at most 4096",),
        2,
        (),
        (WIDER[0], "10000000000"),
        again=False,
    ),
    Fault(
        "a folder in the output's place",
        left("net.onnx", spoil.folder),
        ("net.onnx: cannot be written", "name"),
        mend=freed("net.onnx"),
    ),
    *disk_faults("100k", "net.onnx", "net.onnx"),
]
