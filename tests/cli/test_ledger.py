"""`dekr ledger`: each row is what an evaluation with that choice finds; passes are shared; runs resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import evaluate
from dekr_infer.cli import ledger as command
from dekr_infer.evaluation import ledger as ledger_module
from dekr_infer.evaluation.ledger import PUBLISHED, Row, find
from dekr_infer.geometry import PUBLISHED_SIZES, Size
from dekr_infer.pose.preprocess import mirror, normalise, warp
from dekr_infer.structures import Frame
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import contents
from tests.support.images import colourful
from tests.support.tiny_models import toy_model
from tests.support.workspace import make_inputs

SIZES = {f"p{number}.jpg": Size(40 + number, 40 + 3 * number) for number in range(9)}
LIMIT = 3
SETTINGS = ("DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "rescore.pth")
DECODINGS = ("flip off", "flip without its shift", "rescoring off", "NMS_THRE 0.15, NMS_NUM_THRE 10", "MATCH_HMP on")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    make_inputs(folder, SIZES)
    onnx.save(toy_model(PUBLISHED_SIZES, 0.1), folder / "in" / "net.onnx")  # its people score enough to be compared
    return folder / "in"


@pytest.fixture
def place(inputs, tmp_path, monkeypatch) -> Path:
    shutil.copytree(inputs, tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    return tmp_path / "in"


def ledger(*flags: object, pairs: tuple[str, ...] = SETTINGS) -> Ran:
    words = ["--model", "net.onnx", "--output", "led", "--resamples", 20, "--threads", 1, *flags]
    return run_command(command.main, *words, *pairs)


def rows() -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(Path("led/ledger.json").read_text())["rows"]}


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """The precision of every pass that is run."""
    done: list[str] = []
    plain = OnnxRuntime.run

    def run(network: OnnxRuntime, *words: object):
        done.append(f"{network.precision or network.input_dtype}")
        return plain(network, *words)

    monkeypatch.setattr(OnnxRuntime, "run", run)
    return done


def test_every_row_is_an_evaluation_and_no_pass_is_run_twice(place, runs):
    ran = ledger("--limit", LIMIT)
    assert ran.code == 0, ran
    found = rows()
    assert list(found) == [PUBLISHED, *DECODINGS, "exact sizes", "8-bit input", *command.PRECISIONS]
    per_image = 3 + 2 + 2 * (1 + len(command.PRECISIONS))
    assert len(runs) == per_image * LIMIT
    assert runs.count("float32") == (3 + 2) * LIMIT, "original, flipped, flipped without shift; exact sizes"
    choices = {
        PUBLISHED: (),
        "flip off": ("TEST.FLIP_TEST", "False"),
        "rescoring off": ("RESCORE.VALID", "False"),
        DECODINGS[3]: ("TEST.NMS_THRE", "0.15", "TEST.NMS_NUM_THRE", "10"),
        "MATCH_HMP on": ("TEST.MATCH_HMP", "True"),
        "fp16 (force_fp16)": ("--precision", "fp16"),
    }
    for number, (name, words) in enumerate(choices.items()):
        flags, pairs = (words, ()) if words[:1] == ("--precision",) else ((), words)
        line = ["--model", "net.onnx", "--output", f"e{number}", "--threads", 1, "--limit", LIMIT]
        assert run_command(evaluate.main, *line, *flags, *SETTINGS, *pairs).code == 0
        metrics = json.loads(Path(f"e{number}/metrics.json").read_text())
        assert found[name]["ap"] == pytest.approx(metrics["figures"]["AP"], abs=1e-12), name
    first = found[PUBLISHED]
    assert (first["difference"], first["low"], first["high"], first["changed"]) == (0, 0, 0, 0)
    assert all(row["low"] <= row["difference"] <= row["high"] for row in found.values())
    assert found["flip off"]["changed"] > 0 and found["MATCH_HMP on"]["changed"] > 0
    assert found["8-bit input"]["changed"] == 0
    assert all(f"{name} " in ran.out for name in found)


def test_a_stopped_run_resumes_and_a_finished_one_runs_nothing(place, runs, monkeypatch):
    assert ledger("--only", "flip|weights").code == 0
    wanted = rows()
    shutil.move("led", "whole")
    plain, last = ledger_module.find, Path(list(SIZES)[-1]).stem

    def stops(network: OnnxRuntime, frame: Frame, rows: list[Row]) -> object:
        if frame.key == last:
            raise KeyboardInterrupt
        return plain(network, frame, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "find", stops)
        stopped = ledger("--only", "flip|weights")
    assert stopped.code == 130 and "interrupted" in stopped.err and not Path("led/ledger.json").exists()
    runs.clear()
    assert ledger("--only", "flip|weights").code == 0
    assert len(runs) == 3 + 2 * len(SIZES), "one image, as the shard of the others was whole; rounded weights"
    timeless = [{key: value for key, value in row.items() if key != "milliseconds"} for row in rows().values()]
    assert timeless == [{k: v for k, v in row.items() if k != "milliseconds"} for row in wanted.values()]
    assert {n: d for n, d in contents(Path("led/people")).items() if n.endswith(".lock")} == {}
    runs.clear()
    assert ledger("--only", "flip|weights").code == 0 and not runs
    assert ledger("--only", "flip|weights", pairs=(*SETTINGS, "TEST.NMS_THRE", "0.1")).code == 0
    assert len(runs) == (3 + 2) * len(SIZES), "people of other settings are no people of these"


def test_choices_that_are_made_already_are_turned_back(place):
    pairs = ("TEST.FLIP_TEST", "False", "RESCORE.VALID", "False", "TEST.NMS_THRE", "0.15", "TEST.NMS_NUM_THRE", "10")
    assert ledger("--limit", 2, "--only", "^(flip|resc|NMS|MATCH)", pairs=(*SETTINGS, *pairs)).code == 0
    assert list(rows()) == [PUBLISHED, "flip on", "rescoring on", "NMS_THRE 0.05, NMS_NUM_THRE 8", "MATCH_HMP on"]
    assert json.loads(Path("led/ledger.json").read_text())["images"] == 2


def test_without_annotations_there_is_agreement_and_no_ap(place):
    path = Path("coco/annotations/person_keypoints_val2017.json")
    content = json.loads(path.read_text())
    path.unlink()
    path.with_name("image_info_val2017.json").write_text(json.dumps({"images": content["images"], "categories": []}))
    ran = ledger("--only", "flip off")
    assert ran.code == 0 and "there is no AP" in ran.err, ran
    found = rows()
    assert found["flip off"]["ap"] is None and found[PUBLISHED]["agreed"] in (pytest.approx(1), -1)


def test_the_flipped_pass_without_shift_is_the_mirrored_image(place):
    network = OnnxRuntime(Path("net.onnx"), 1)
    image = colourful(Size(50, 60), 1)
    frame = Frame("a", PUBLISHED_SIZES.place(Size(50, 60)), lambda: image, image_id=1)
    seen: list[np.ndarray] = []

    class Spy:
        flip = True

        def decode(self, passes, placement):
            seen.append(passes.flipped.heatmap)
            return None

    find(network, frame, [Row("a", Spy(), {}), Row("b", Spy(), {}, shift=False)])  # type: ignore[arg-type]
    warped = warp(image, frame.placement.input)
    for found, pixels in zip(seen, (mirror(warped), cv2.flip(warped, 1)), strict=True):
        assert np.array_equal(found, network.run(normalise(pixels))[0][0])
    assert not np.array_equal(*seen)


def test_a_row_that_overflows_is_reported_and_the_others_go_on(place):
    model = toy_model(PUBLISHED_SIZES, 0.1)
    for tensor in model.graph.initializer:
        if tensor.name == "off":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), "off"))
    onnx.save(model, "net.onnx")
    ran = ledger("--only", "force|allow|8-bit", "--limit", 1, pairs=(*SETTINGS[:2], "RESCORE.VALID", "False"))
    assert ran.code == 0, ran
    assert list(rows()) == [PUBLISHED, "8-bit input"]
    problems = json.loads(Path("led/ledger.json").read_text())["problems"]
    assert list(problems) == ["fp16 (force_fp16)", "fp16 (allow_fp32_to_fp16)"]
    assert all("overflows in float16" in line for line in problems.values())


def test_mistakes_are_one_error_line(place):
    other = toy_model(PUBLISHED_SIZES)
    onnx.save(other, "other.onnx")
    assert_refused(ledger("--int8", "other.onnx", "--limit", 1), 1, "is not the network of net.onnx in int8")
    assert_refused(ledger("--only", "("), 2, "is no regular expression")
    assert_refused(ledger(pairs=(*SETTINGS, "TEST.SCALE_FACTOR", "[0.5,1]")), 2, "is of one scale")
    assert_refused(ledger(pairs=("DATASET.ROOT", "coco", "RESCORE.MODEL_FILE", "none.pth")), 1, "none.pth")
    with (place / "coco/images/val2017.zip").open("r+b") as file:
        file.truncate(100)
    ran = ledger()
    assert ran.code == 1 and ran.err.startswith("error: ")
