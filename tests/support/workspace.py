"""A folder with the whole chain in it, small: three pictures, a toy graph, a rescoring net; and the commands run there.

Inputs are in `in`, which is the current folder of every command; everything they write goes to `w`.
"""

from __future__ import annotations

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
from tests.support.coco_files import person, write_annotation, write_images
from tests.support.commands import Ran, run_command
from tests.support.folders import contents, copy_linked
from tests.support.images import colourful, encode
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


def main_of(stage: str) -> Callable[..., int]:
    """A stage's command as a function."""
    if stage == EXPORT:
        from dekr_infer.cli import export as export_command

        return export_command.main
    mains = {PREPROCESS: preprocess_command.main, INFER: onnx_infer.main}
    return (mains | {POSTPROCESS: postprocess_command.main, EVALUATE: evaluate_command.main})[stage]


class Place:
    """A copy of what one stage needs, by links: files in it are replaced, never written into.

    Without a source, the folder's own `in` and `w` are used as they are.
    """

    def __init__(self, folder: Path, stage: str, source: Path | None = None) -> None:
        self.folder, self.stage, self.source = folder, stage, source
        self.inputs, self.outputs = folder / "in", folder / "w"
        if source is not None:
            self.outputs.mkdir(parents=True)
            self.restore()

    def restore(self) -> None:
        """Bring all inputs into order again."""
        assert self.source is not None
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
        """The contents of the output folder by name; links and pipes by their kind."""
        return contents(self.outputs)


def make_inputs(folder: Path, sizes: dict[str, Size] | None = None) -> None:
    """The inputs of every stage, and what each stage makes of them: the undisturbed run, in `w` and linked to `in`."""
    source, sizes = folder / "in", sizes or SIZES
    write_annotation(source / "coco", sizes, people_in(sizes))
    encoded = {name: encode(colourful(size, seed), ".jpg") for seed, (name, size) in enumerate(sizes.items())}
    write_images(source / "coco", encoded)
    onnx.save(toy_model(PUBLISHED_SIZES, 0.02), source / "net.onnx")
    write_rescore_net(source / "rescore.pth")
    (folder / "w").mkdir()


def people_in(sizes: dict[str, Size]) -> list[dict[str, object]]:
    """A person in every image."""
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
        ran = Place(folder, stage).run()
        assert ran.code == 0, ran
        for name in ("prep_data", "prep_data_flip", "out", "out_flip"):
            if (folder / "w" / name).is_dir() and not (folder / "in" / name).exists():
                copy_linked(folder / "w" / name, folder / "in" / name)


def undisturbed_run(
    folder: Path, stages: tuple[str, ...], sizes: dict[str, Size] | None = None, checkpoint: Path | None = None
) -> Path:
    """Make the inputs and run stages in a row; return the folder: inputs are in `in`, outputs in `w`."""
    make_inputs(folder, sizes)
    if checkpoint is None:
        (folder / "in" / "model.pth").touch()
    else:
        copy_linked(checkpoint, folder / "in" / "model.pth")
    run_through(folder, stages)
    return folder
