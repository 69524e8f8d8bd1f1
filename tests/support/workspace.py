"""A folder with the whole chain in it, small: three pictures, a toy graph, a rescoring net; and the commands run there.

Inputs stand in `in`, which is the current folder of every command; everything they write goes to `w`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dekr_infer.cli import evaluate as evaluate_command
from dekr_infer.cli import onnx_infer
from dekr_infer.cli import postprocess as postprocess_command
from dekr_infer.cli import preprocess as preprocess_command
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.pose.rescore import layer_shapes
from tests.support.helpers import Ran, colourful, encode, person, run_command, write_annotation, write_pictures
from tests.support.tiny_models import PAIRS, toy_model

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"a.jpg": Size(60, 60), "b.jpg": Size(52, 52), "c.jpg": Size(40, 40)}  # squares have the smallest input size
PREPROCESS, EXPORT, INFER, POSTPROCESS, EVALUATE = "preprocess", "export", "infer", "postprocess", "evaluate"
SCRIPTS = {
    PREPROCESS: "DEKR_preprocess.py",
    EXPORT: "DEKR_pth2onnx.py",
    INFER: "scripts/onnx_infer.py",
    POSTPROCESS: "DEKR_postprocess.py",
    EVALUATE: "scripts/evaluate.py",
}
WORDS = {
    PREPROCESS: (*("--output", "../w/prep_data", "--output_flip", "../w/prep_data_flip"), "--workers", "1"),
    EXPORT: ("--output", "../w/net.onnx", "--skip_check", "--threads", "1"),
    INFER: ("--model", "net.onnx", "--output", "../w", "--threads", "1"),
    POSTPROCESS: ("--dump_dir", "out", "--dump_dir_flip", "out_flip", "--output", "../w/results"),
    EVALUATE: (*("--model", "net.onnx", "--output", "../w/evaluated", "--run", "run"), *("--shard_images", "3")),
}
SETTINGS = {
    PREPROCESS: ("DATASET.ROOT", "coco"),
    EXPORT: (*PAIRS, "TEST.MODEL_FILE", "model.pth"),
    INFER: (),
    POSTPROCESS: ("DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth"),
    EVALUATE: ("DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth"),
}
NEEDS = {
    PREPROCESS: ("coco",),
    EXPORT: ("model.pth", "rescore.pth"),
    INFER: ("net.onnx", "prep_data", "prep_data_flip"),
    POSTPROCESS: ("coco", "out", "out_flip", "rescore.pth", "model.pth"),
    EVALUATE: ("coco", "net.onnx", "rescore.pth"),
}
TIMED = ("_summary.json", "_record.jsonl")  # files that hold times and process ids


def main_of(stage: str) -> Callable[..., int]:
    """A stage's command as a function."""
    if stage == EXPORT:
        from dekr_infer.cli import export as export_command

        return export_command.main
    mains = {PREPROCESS: preprocess_command.main, INFER: onnx_infer.main}
    return (mains | {POSTPROCESS: postprocess_command.main, EVALUATE: evaluate_command.main})[stage]


class Place:
    """A copy of what one stage needs, by links: files in it are replaced, never written into."""

    def __init__(self, folder: Path, stage: str, source: Path) -> None:
        self.folder, self.stage, self.source = folder, stage, source
        self.inputs, self.outputs = folder / "in", folder / "w"
        self.outputs.mkdir(parents=True)
        self.restore()

    def restore(self) -> None:
        """Bring all inputs into order again."""
        shutil.rmtree(self.inputs, ignore_errors=True)
        self.inputs.mkdir()
        for name in NEEDS[self.stage]:
            copy_linked(self.source / name, self.inputs / name)

    def run(self, *flags: str, pairs: tuple[str, ...] = (), real: bool = False) -> Ran:
        """The stage's command, in this process or as one of its own."""
        words = [*WORDS[self.stage], *flags, *SETTINGS[self.stage], *pairs]
        if real:
            done = subprocess.run(
                self.command(*flags, pairs=pairs), cwd=self.inputs, capture_output=True, text=True, timeout=120
            )
            return Ran(done.returncode, done.stdout, done.stderr)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.inputs)
            return run_command(main_of(self.stage), *words)

    def command(self, *flags: str, pairs: tuple[str, ...] = ()) -> list[str]:
        """The stage's command line, to be run in `inputs`."""
        script = str(ROOT / SCRIPTS[self.stage])
        return [sys.executable, script, *WORDS[self.stage], *flags, *SETTINGS[self.stage], *pairs]

    def written(self) -> dict[str, bytes]:
        """What stands in the output folder, by name; links and pipes by their kind."""
        return contents(self.outputs)


def copy_linked(source: Path, target: Path) -> None:
    """A file or folder once more, by hard links."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        os.link(source, target)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their path in it; metrics without their seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = b"folder"
        elif not path.is_file():
            found[name] = b"no regular file"
        else:
            found[name] = without_times(path)
    return found


def without_times(path: Path) -> bytes:
    """A file's bytes, but for the times that some hold."""
    if path.name.endswith(TIMED):
        return b"times"
    if path.name.startswith("shard-") and path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return json.dumps(
            [{key: value for key, value in row.items() if key != "milliseconds"} for row in rows]
        ).encode()
    if path.name == "metrics.json":
        metrics = json.loads(path.read_bytes())
        return json.dumps({key: value for key, value in metrics.items() if key != "seconds"}).encode()
    return path.read_bytes()


def make_inputs(folder: Path, sizes: dict[str, Size] | None = None) -> None:
    """The inputs of every stage, and what each stage makes of them: the undisturbed run, in `w` and linked to `in`."""
    source, sizes = folder / "in", sizes or SIZES
    write_annotation(source / "coco", sizes, people_in(sizes))
    encoded = {name: encode(colourful(size, seed), ".jpg") for seed, (name, size) in enumerate(sizes.items())}
    write_pictures(source / "coco", encoded)
    onnx.save(toy_model(PUBLISHED_SIZES, 0.02), source / "net.onnx")
    write_rescore_net(source / "rescore.pth")
    (folder / "w").mkdir()


def people_in(sizes: dict[str, Size]) -> list[dict[str, object]]:
    """A person in every picture."""
    rng = np.random.default_rng(0)
    people = []
    for number, size in enumerate(sizes.values()):
        places = rng.uniform(0.1, 0.9, (17, 2)) * (size.w, size.h)
        people.append(person(number + 1, 1000 - number, np.concatenate((places, np.full((17, 1), 2.0)), axis=1)))
    return people


def write_rescore_net(path: Path, scale: float = 1.0, hidden: int = 256) -> None:
    """A rescoring checkpoint with seeded weights."""
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({name: torch.nn.Linear(*shape) for name, shape in layer_shapes(hidden).items()})
    torch.save({key: scale * value for key, value in net.state_dict().items()}, path)


def run_through(folder: Path, stages: tuple[str, ...]) -> None:
    """Run stages in a row in a folder of `make_inputs`; each one's outputs become the next one's inputs."""
    for stage in stages:
        place = Place.__new__(Place)
        place.folder, place.stage, place.inputs, place.outputs = folder, stage, folder / "in", folder / "w"
        ran = place.run()
        assert ran.code == 0, ran
        for name in ("prep_data", "prep_data_flip", "out", "out_flip"):
            if (folder / "w" / name).is_dir() and not (folder / "in" / name).exists():
                copy_linked(folder / "w" / name, folder / "in" / name)
