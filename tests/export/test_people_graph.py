"""The file that yields people: its operators and outputs, and its people against the published way's."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import venv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.backends.output_folder import OutputFolder
from dekr_infer.cli import evaluate as evaluate_command
from dekr_infer.cli import onnx_infer, predict, random_checkpoint
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.sources import frames_of
from dekr_infer.detector import Detector
from dekr_infer.errors import ConfigError
from dekr_infer.evaluation.evaluate import Evaluation, evaluate
from dekr_infer.export import people_graph, people_proof
from dekr_infer.export.people_graph import Writer, add_people
from dekr_infer.export.people_proof import part_of, scenes
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.onnx_graph.baked import Baked
from dekr_infer.onnx_graph.dialects import ONNX, to_dialect
from dekr_infer.pose.decode import transform_poses
from dekr_infer.pose.encode import Encoding, noisy, write_dumps
from dekr_infer.pose.preprocess import mirror, normalise
from dekr_infer.pose.rescore import RescoreNet, load_rescore_net
from dekr_infer.skeleton import COCO_17, CROWDPOSE_14
from dekr_infer.storage.atomic import sha256
from dekr_infer.structures import OUTPUT_NAMES, PEOPLE_NAMES, Frame, People
from tests.support.coco_files import REAL
from tests.support.commands import assert_refused, run_command
from tests.support.graphs import metadata
from tests.support.recipe import DECODE
from tests.support.tiny_models import ONE_THREAD, PAIRS, SMALL_INPUT_SIZES, Tiny, export_command, toy_model

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
RESCORE = ROOT / "scripts/demo/weights/rescore_demo.pth"
WITHOUT = ("RESCORE.VALID", "False")


def export(output: Path, tiny: Tiny, *flags: str, pairs: tuple[str, ...] = ("RESCORE.MODEL_FILE", str(RESCORE))) -> str:
    """Export people by the command, for the small input sizes; return what it printed."""
    words = ["--output", output, "--dialect", "onnx", "--decode", "people", *ONE_THREAD, *flags, *tiny.pairs(), *pairs]
    ran = run_command(lambda argv: export_command.main(argv, SMALL_INPUT_SIZES), *words)
    assert ran.code == 0, ran
    return ran.out


@pytest.fixture(scope="module")
def people_file(tiny, tmp_path_factory) -> Path:
    """A file with everything in it: flip, rescoring, normalisation."""
    path = tmp_path_factory.mktemp("people") / "people.onnx"
    path.with_suffix(".txt").write_text(export(path, tiny, "--input", "uint8"))
    return path


@pytest.fixture(scope="module")
def plain_file(tiny, tmp_path_factory) -> Path:
    """A file with as little in it as can be, of plain operators, and with the maps."""
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    flags = ("--flip", "off", "--deform", "gather", "--with_maps", "--skip_check")
    path.with_suffix(".txt").write_text(export(path, tiny, *flags, pairs=WITHOUT))
    return path


FORMS = pytest.mark.parametrize("form", ["people", "plain"])


@pytest.fixture
def file(form: str, people_file: Path, plain_file: Path) -> Path:
    return people_file if form == "people" else plain_file


def net() -> RescoreNet:
    return load_rescore_net(RESCORE, 256)


# --- the published way and the file, on encoded ground truth


class DecodingInFile:
    """The part of a file behind the network, fed with recorded outputs."""

    def __init__(self, folders: OutputFolder, baked: Baked, rescore: RescoreNet | None) -> None:
        self.folders, self.baked, self.input_sizes = folders, baked, PUBLISHED_SIZES
        file = add_people(to_dialect(toy_model(PUBLISHED_SIZES), ONNX), baked, PUBLISHED_SIZES, COCO_17, rescore)
        self.session = part_of(file, [*OUTPUT_NAMES, *["pixel"] * (rescore is not None)], PEOPLE_NAMES, 1)

    def infer(self, frame: Frame, flip: bool) -> People:
        assert flip == self.baked.flip
        passes = [maps for maps in self.folders.infer(frame, flip) if maps is not None]
        feed = {name: np.stack([getattr(maps, name) for maps in passes]) for name in OUTPUT_NAMES}
        if self.baked.rescore_sha256:
            feed["pixel"] = np.array(min(frame.placement.input) / min(frame.placement.image), np.float32)
        (keypoints,), (scores,), num = self.session.run(None, feed)
        count = num.item()
        return People(transform_poses(keypoints[:count], frame.placement.to_image), scores[:count])


@pytest.mark.parametrize("which", ["drawn", pytest.param("real", marks=[*REAL.marks, pytest.mark.long])])
def test_ap_and_poses_are_those_of_the_three_steps(root, tmp_path):
    data = load_data_set(root, "val2017")
    folders = write_dumps(data, tmp_path, Encoding(distort=noisy), seed=5)
    frames = frames_of(data, PUBLISHED_SIZES)
    for flip, rescore in itertools.product((True, False), (net(), None)):
        outputs = OutputFolder(*folders[: 1 + flip])
        steps = evaluate(Detector(outputs, DECODE, flip=flip, rescore=rescore), data, frames)
        baked = Baked(DECODE, flip, "0" * 64 if rescore else None)
        inside = evaluate(Detector(DecodingInFile(outputs, baked, rescore), flip=flip), data, frames)
        assert steps.metrics["AP"] > 0.5
        for name, value in steps.metrics.items():
            assert inside.metrics[name] == pytest.approx(value, abs=1e-6), (flip, rescore is not None, name)
        assert worst(inside, steps) <= 1e-3


def worst(found: Evaluation, expected: Evaluation) -> float:
    """Return the largest difference of a coordinate or score, people compared in the order of their scores."""
    ordered = [
        sorted(one.results, key=lambda entry: (entry["image_id"], -round(entry["score"], 5), entry["keypoints"]))
        for one in (found, expected)
    ]
    values = [np.array([[*entry["keypoints"], entry["score"]] for entry in entries]) for entries in ordered]
    assert len(values[0]) == len(values[1]) > 20
    return float(np.abs(values[0] - values[1]).max())


@pytest.mark.parametrize("flip", [True, False])
def test_people_of_made_scenes_are_those_of_our_decoding(flip):
    baked, rng = Baked(DECODE, flip, "0" * 64), np.random.default_rng(1)
    file = add_people(to_dialect(toy_model(), ONNX), baked, SMALL_INPUT_SIZES, COCO_17, net())
    session = part_of(file, [*OUTPUT_NAMES, "pixel"], PEOPLE_NAMES, 1)
    found = 0
    for maps in (maps for _ in range(10) for maps in scenes(rng, Size(16, 24), COCO_17, baked)):
        feed = dict(zip(OUTPUT_NAMES, maps, strict=True)) | {"pixel": np.array(2.5, np.float32)}
        expected = people_proof.expected_people(maps, baked, net(), COCO_17, 2.5)
        count, same, pixels, score = people_proof.compare(session.run(None, feed), expected)
        assert same and pixels <= 1e-3 and score <= 1e-5
        found += count
    assert found > 300


def test_the_flipped_image_is_that_of_preprocessing():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    graph = people_graph.ir.from_proto(toy_model()).graph
    source = graph.inputs[0]
    both = people_graph.mirror(Writer(graph), source)
    both.type, both.shape = source.type, people_graph.ir.Shape([2, 3, 64, 96])
    graph.outputs[:] = [both]
    model = people_graph.ir.Model(graph, ir_version=9)
    model.opset_imports[""] = 19
    session = onnxruntime.InferenceSession(people_graph.to_proto(model).SerializeToString())
    (found,) = session.run(None, {"image": normalise(image)})
    np.testing.assert_array_equal(found, np.concatenate((normalise(image), normalise(mirror(image)))))


# --- the file


def test_outputs_operators_and_metadata(people_file):
    model = onnx.load(people_file)
    assert [entry.name for entry in model.graph.input] == ["image", "pixel"]
    outputs = {entry.name: [d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in model.graph.output}
    assert outputs == {"keypoints": [1, 30, 17, 3], "scores": [1, 30], "num": [1, 1]}
    assert {entry.domain for entry in model.opset_import} == {""}
    shaping = {"NonZero", "Loop", "If", "Scan", "GatherND", "ScatterND", "NonMaxSuppression", "Compress", "Unique"}
    assert not {node.op_type for node in model.graph.node} & shaping
    found = metadata(model)
    expected = {"decode": "people", "flip": "on", "rescore": "on", "max_people": "30", "score_threshold": "0.01"}
    expected |= {"nms_distance": "0.05", "nms_joints": "8", "input_dtype": "uint8", "mean": "0.485,0.456,0.406"}
    assert expected.items() <= found.items()
    assert Baked.parse(found).settings == DECODE


def test_with_maps_adds_the_maps(plain_file):
    session = onnxruntime.InferenceSession(plain_file)
    assert [entry.name for entry in session.get_outputs()] == [*PEOPLE_NAMES, *OUTPUT_NAMES]
    *_, heatmap, offset = session.run(None, {"image": np.zeros((1, 3, 64, 96), np.float32)})
    assert heatmap.shape == (1, 18, 16, 24) and offset.shape == (1, 34, 16, 24)


def test_crowdposes_joints_are_decoded_and_rescored_inside_too(tmp_path):
    """The export itself proves the people of the file; it ends with an error where they are not ours."""
    settings = ["--cfg", "dekr_w32_crowdpose", *PAIRS]
    names = [str(tmp_path / name) for name in ("net.pth", "rescore.pth", "people.onnx")]
    made = run_command(random_checkpoint.main, "--output", names[0], "--output_rescore", names[1], *settings)
    assert made.code == 0, made
    words = ["--output", names[2], "--dialect", "onnx", "--decode", "people", *ONE_THREAD, *settings]
    words += ["TEST.MODEL_FILE", names[0], "RESCORE.MODEL_FILE", names[1]]
    ran = run_command(lambda argv: export_command.main(argv, InputSizes((Size(64, 96),))), *words)
    assert ran.code == 0 and " people  " in ran.out and "TOO LARGE" not in ran.out, ran
    assert OnnxRuntime(Path(names[2]), 1).joints == CROWDPOSE_14.joints


@FORMS
def test_a_detector_finds_the_same_people_over_the_maps_and_over_the_file(tiny, tmp_path, file, form):
    """Both run a network, so the maps differ by rounding; the tiny network's candidates are far enough apart."""
    model = tiny.model()
    onnx.helper.set_model_props(model, metadata(model) | {"input_sizes": str(SMALL_INPUT_SIZES)})
    onnx.save(model, tmp_path / "maps.onnx")
    flip, rescore = (True, net()) if form == "people" else (False, None)
    image = cv2.resize(np.random.default_rng(2).integers(0, 256, (9, 13, 3), np.uint8), (130, 90))
    inside = Detector(file, threads=1, flip=flip)(image)
    outside = Detector(tmp_path / "maps.onnx", DECODE, flip=flip, rescore=rescore, threads=1)(image)
    order = np.argsort(-outside.scores, kind="stable")
    assert len(inside) == len(outside) > 3
    np.testing.assert_allclose(inside.scores, outside.scores[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inside.poses[:, :, :2], outside.poses[order, :, :2], atol=1e-3)


def broken(*arguments):
    """Leave every candidate: nobody is near anybody."""
    write, x, y, mean_heat, found, settings = arguments
    return people_graph_remove(write, x, y, mean_heat, found, replace(settings, nms_joints=17))


people_graph_remove = people_graph.remove_duplicates


def test_the_proof_notices_a_wrong_decoding_and_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(people_graph, "remove_duplicates", broken)
    words = ["--output", tmp_path / "p.onnx", "--dialect", "onnx", "--decode", "people", *ONE_THREAD]
    ran = run_command(lambda argv: export_command.main(argv, SMALL_INPUT_SIZES), *words, *tiny.pairs(), *WITHOUT)
    assert ran.code == 1 and "NOT AS MANY" in ran.out
    assert "or its people from our decoding" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_numbers_are_not_nobody(people_file, tmp_path):
    model = onnx.load(people_file)
    for tensor in model.graph.initializer:
        if tensor.name == "normalise.bias":
            tensor.raw_data = np.full(3, np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(Exception, match="NaN or infinite"):
        Detector(tmp_path / "nan.onnx", threads=1)(np.zeros((64, 96, 3), np.uint8))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--decode", "people"), 2, "needs --dialect onnx"),
        (("--flip", "off"), 2, "need --decode people"),
        (("--decode", "people", "--dialect", "onnx", "--deform", "gather"), 2, "add --flip off"),
        (("--with_maps",), 2, "need --decode people"),
    ],
)
def test_what_cannot_be_exported(tiny, tmp_path, words, code, says):
    ran = run_command(export_command.main, "--output", tmp_path / "p.onnx", *words, *tiny.pairs(), *WITHOUT)
    assert_refused(ran, code, says)


@pytest.mark.parametrize(
    ("key", "value"), [("TEST.MATCH_HMP", "True"), ("TEST.INPUT_SIZES", "exact"), ("TEST.SCALE_FACTOR", "1,2")]
)
def test_settings_that_are_not_put_into_a_graph_are_refused(tiny, tmp_path, key, value):
    words = ("--output", tmp_path / "p.onnx", "--dialect", "onnx", "--decode", "people", *tiny.pairs())
    assert_refused(run_command(export_command.main, *words, *WITHOUT, key, value), 2, key)


def test_input_sizes_that_need_different_neighbourhoods_are_refused():
    settings = replace(DECODE, pool_sides=(300, 130))
    with pytest.raises(ConfigError, match="neighbourhoods of different sizes"):
        add_people(to_dialect(toy_model(), ONNX), Baked(settings), PUBLISHED_SIZES, COCO_17)


# --- the snippet


def snippet_in(text: str) -> str:
    return text[text.index("import cv2") :]


def bare_python(folder: Path) -> Path:
    """A virtual environment that holds only onnxruntime, numpy and OpenCV."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for package in (np, cv2, onnxruntime):
        place = Path(package.__file__ or "").parent
        for name in (place.name, f"{place.name}.libs", "opencv_python_headless.libs"):
            if (place.parent / name).is_dir() and not (site / name).exists():
                (site / name).symlink_to(place.parent / name)
    return folder / "bin" / "python"


@FORMS
@pytest.mark.parametrize("shape", [(91, 133), (200, 89)])
def test_the_printed_snippet_finds_the_people(file, tmp_path, shape):
    snippet = snippet_in(file.with_suffix(".txt").read_text())
    assert len(snippet.splitlines()) <= 17
    assert set(re.findall(r"import (.*)", snippet)) == {"cv2, numpy as np, onnxruntime"}
    image = np.random.default_rng(4).integers(0, 256, (6, 5, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(image, shape[::-1]))
    code = snippet + '\nnp.save("poses.npy", poses); np.save("scores.npy", scores)\n'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [bare_python(tmp_path / "venv"), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = Detector(file, threads=1)(tmp_path / "photo.jpg")
    assert len(expected) > 0
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected.scores, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "poses.npy"), expected.poses, atol=1e-3)


# --- the commands


def test_the_commands_take_the_file(people_file, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, root = ("--model", people_file), ("DATASET.ROOT", drawn)
    ran = run_command(evaluate_command.main, *model, *ONE_THREAD, *root)
    assert ran.code == 0 and "flip on, rescoring on" in ran.out, ran
    settled = json.loads(Path("results/metrics.json").read_text())
    assert settled["sha256"]["rescore"] == sha256(RESCORE) and settled["settings"]["flip"] is True
    ran = run_command(evaluate_command.main, *model, *root, "TEST.FLIP_TEST", "False")
    assert_refused(ran, 2, "TEST.FLIP_TEST False", "decodes people itself")
    ran = run_command(evaluate_command.main, *model, *root, "RESCORE.MODEL_FILE", drawn / "images/val2017.zip")
    assert_refused(ran, 2, f"not the rescoring net inside {people_file}")
    cv2.imwrite("photo.png", np.full((90, 130, 3), 120, np.uint8))
    assert run_command(predict.main, *model, *ONE_THREAD, "photo.png").code == 0
    ran = run_command(predict.main, *model, "--rescore", RESCORE, "photo.png")
    assert_refused(ran, 2, "holds its rescoring net; leave --rescore out")


def test_onnx_infer_writes_people_from_one_folder_of_8_bit_tensors(people_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(4).integers(0, 256, (1, 3, 64, 96), np.uint8)
    Path("prep_data").mkdir()
    np.save("prep_data/a.npy", image)
    assert run_command(onnx_infer.main, "--model", people_file, *ONE_THREAD).code == 0
    assert sorted(path.name for path in Path("out").glob("*.npy")) == ["a_0.npy", "a_1.npy", "a_2.npy"]
    keypoints, scores, num = (np.load(f"out/a_{index}.npy") for index in range(3))
    expected = OnnxRuntime(people_file, 1).run(image)
    np.testing.assert_array_equal(keypoints, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    assert num.tolist() == expected[2].tolist() and num.item() > 0
    np.save("prep_data/a.npy", image.astype(np.float32))
    ran = run_command(onnx_infer.main, "--model", people_file, *ONE_THREAD)
    assert_refused(ran, 1, "a.npy: holds float32", "takes uint8", "--dtype uint8")


def test_the_detector_refuses_what_the_file_settles(people_file):
    for options in ({"settings": replace(DECODE, threshold=0.5)}, {"rescore": net()}, {"flip": False}):
        with pytest.raises(ConfigError, match="the graph"):
            Detector(OnnxRuntime(people_file, 1), **options)
