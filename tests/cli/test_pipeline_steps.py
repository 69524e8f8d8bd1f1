"""Which steps `dekr pipeline` does again, and what of their results it keeps.

Preprocessing, the CPU runner and postprocessing are the real ones, over three small images; the export and the two
Ascend tools are stand-ins that copy the contents that decide their results.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from yacs.config import CfgNode

from dekr_infer.backends.folder_runner import Options, list_tensors, record_outputs
from dekr_infer.backends.tensor_folder import Converter
from dekr_infer.cli import pipeline
from dekr_infer.cli.onnx_infer import infer
from dekr_infer.data.coco import ImageEntry, annotation_path
from dekr_infer.errors import ConfigError
from dekr_infer.geometry import PUBLISHED_SIZES
from dekr_infer.storage.atomic import sha256
from dekr_infer.storage.run_record import record_path
from tests.support.ascend_host import FAKES, steps
from tests.support.coco_files import write_images
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import copy_linked
from tests.support.images import colourful, encode
from tests.support.tiny_models import toy_model
from tests.support.workspace import SIZES, make_inputs, write_rescore_net

INFERS = ["infer", "infer_flip"]
BOTH = [*INFERS, "postprocess"]
ALL = ["preprocess", "export", *BOTH]
ANNOTATION = Path("data/annotations/person_keypoints_val2017.json")


def _export(config: CfgNode, output: Path, *, threads: int) -> None:
    """Write a graph that depends on the weights."""
    onnx.save(toy_model(PUBLISHED_SIZES, len(Path(config.TEST.MODEL_FILE).read_text()) / 100), output)


def _convert(graph: Path, output: Path, *, chip: str) -> None:
    output.write_text(json.dumps({"graph": str(graph), "sha256": sha256(graph), "chip": chip}))


def _run_passes(model: Path, *, source: Path, output: Path, dirname: str, device: int) -> None:
    graph = Path(json.loads(model.read_text())["graph"])
    infer(graph, [([source], output / dirname)], Options(overwrite=True, warmup_count=0), 1, {})
    record_outputs(output / dirname, list_tensors([source]), sha256(model))


class Chain:
    """A data set, weights, and the pipeline over them; the current folder is also the work folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, source: Path) -> None:
        self.folder, self.patch = folder, patch
        copy_linked(source / "coco", folder / "data")
        copy_linked(source / "rescore.pth", folder / "rescore.pth")
        self.write("net.pth", "weights")
        self.write("own.yaml", "TEST:\n  NMS_THRE: 0.05\n")
        patch.chdir(folder)
        patch.setattr("dekr_infer.cli.export.export", _export)
        patch.setattr(pipeline, "convert", _convert)
        patch.setattr(pipeline, "run_passes", _run_passes)

    def write(self, name: str, text: str, date: int | None = None) -> None:
        """Replace a file, never write into it."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        if date is not None:
            os.utime(path, ns=(date, date))

    def go(self, *words: str) -> Ran:
        files = ("--data", "data", "--weights", "net.pth", "--rescore", "rescore.pth")
        return run_command(pipeline.main, *files, *words)

    def executed(self, *words: str) -> list[str]:
        """Return the steps that were done, by a run that succeeded."""
        ran = self.go(*words)
        assert ran.code == 0, ran
        return [name for name, fresh in steps(ran.out).items() if fresh]

    def replace_image(self, seed: int = 99, as_zip: bool = True) -> None:
        """Another image under the name of the first."""
        images = {name: encode(colourful(size, seed if name == "a.jpg" else n), ".jpg")
                  for n, (name, size) in enumerate(SIZES.items())}  # fmt: skip
        (self.folder / "data/images/val2017.zip").unlink(missing_ok=True)
        write_images(self.folder / "data", images, as_zip=as_zip)

    def values(self, name: str) -> np.ndarray:
        found: np.ndarray = np.load(self.folder / name)
        return found

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return what changes when a tensor or an output is written."""
        found = {path: path.stat() for path in self.folder.glob("*/*.npy")}
        return {str(path.relative_to(self.folder)): (s.st_mtime_ns, s.st_ino) for path, s in found.items()}

    def rewritten(self, before: dict[str, tuple[int, int]]) -> set[str]:
        return {name for name, stamp in self.stamps().items() if before.get(name) != stamp}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_inputs(folder)
    return folder / "in"


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> Chain:
    """A chain that has never run."""
    (tmp_path / "chain").mkdir()
    return Chain(tmp_path / "chain", monkeypatch, source)


@pytest.fixture
def chain(new: Chain) -> Chain:
    """A chain that has run once."""
    assert new.executed() == ALL and new.executed() == []
    return new


def meanwhile(patch: pytest.MonkeyPatch, deed: Callable[[], object]) -> None:
    """Do something once, while the first image is converted, after it was read."""
    real, done = Converter.__call__, []

    def convert(converter: Converter, image: ImageEntry) -> object:
        made = real(converter, image)
        if not done:
            done.append(image)
            deed()
        return made

    patch.setattr(Converter, "__call__", convert)


# --- lost and damaged results


@pytest.mark.parametrize(("lost", "step"), [("out", "infer"), ("out_flip", "infer_flip")])
def test_a_lost_output_is_made_again(chain, lost, step):
    wanted, before = chain.values(f"{lost}/a_0.npy"), chain.stamps()
    (chain.folder / lost / "a_0.npy").unlink()
    assert chain.executed() == [step]
    np.testing.assert_array_equal(chain.values(f"{lost}/a_0.npy"), wanted)
    assert chain.rewritten(before) == {f"{lost}/a_0.npy", f"{lost}/a_1.npy"}
    assert chain.executed() == []


def test_an_emptied_folder_is_filled_again(chain):
    before = chain.stamps()
    for file in (chain.folder / "prep_data").iterdir():
        file.unlink()
    assert chain.executed() == ["preprocess"]
    assert chain.rewritten(before) >= {f"prep_data/{name[0]}.npy" for name in SIZES}
    assert chain.executed() == []


@pytest.mark.parametrize("content", [b"", b"x"])
def test_an_output_that_was_cut_or_overwritten_is_noticed(chain, content):
    path = chain.folder / "out" / "a_0.npy"
    wanted = path.read_bytes()
    before = path.stat()
    path.write_bytes(content and wanted[:-1] + content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert chain.executed() == ["infer"] and path.read_bytes() == wanted


@pytest.mark.parametrize(
    ("name", "step"),
    [("results/metrics.json", "postprocess"), ("dekr_bs1.onnx", "export"), ("out_summary.json", "infer")],
)
def test_a_result_that_is_gone_or_changed_is_made_again(chain, name, step):
    (chain.folder / name).unlink()
    assert chain.executed() == [step]
    (chain.folder / name).write_text("{}")
    assert chain.executed() == [step] and chain.executed() == []


# --- replaced inputs, whatever their date


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("date", [1, 4_000_000_000_000_000_000])
def test_a_replaced_image_reaches_the_outputs(chain, date, as_zip):
    before, values = chain.stamps(), chain.values("prep_data_flip/a.npy")
    chain.replace_image(as_zip=as_zip)
    for path in (chain.folder / "data" / "images").rglob("*"):
        os.utime(path, ns=(date, date))
    assert chain.executed() == ["preprocess", *BOTH]
    assert (chain.values("prep_data_flip/a.npy") != values).any()
    assert {Path(name).name[0] for name in chain.rewritten(before)} == {"a"}
    assert chain.executed() == []


def shift_people(text: str) -> str:
    content = json.loads(text)
    for person in content["annotations"]:
        person["area"] *= 1.5
    return json.dumps(content)


OTHER = {
    str(ANNOTATION): (shift_people, ["preprocess", *BOTH]),
    "net.pth": (lambda text: text + " of another training", ["export", *BOTH]),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_file_replaced_by_an_older_one_is_noticed(chain, name):
    change, wanted = OTHER[name]
    before = chain.stamps()
    chain.write(name, change((chain.folder / name).read_text()), date=1)
    assert chain.executed() == wanted and chain.executed() == []
    assert bool(chain.rewritten(before)) == (name == "net.pth")
    metrics = json.loads((chain.folder / "results/metrics.json").read_text())
    assert "annotations" not in metrics["warnings"]


def test_a_rescoring_file_replaced_by_an_older_one_is_noticed(chain):
    (chain.folder / "rescore.pth").unlink()
    write_rescore_net(chain.folder / "rescore.pth", 2.0)
    os.utime(chain.folder / "rescore.pth", ns=(1, 1))
    assert chain.executed() == ["postprocess"] and chain.executed() == []


def test_a_graph_replaced_by_an_older_one_is_noticed(new):
    given = ("--onnx", "given.onnx")
    for scale in (0.5, 2.0):
        onnx.save(toy_model(PUBLISHED_SIZES, scale), "given.onnx")
        os.utime("given.onnx", ns=(1, 1))
        assert new.executed(*given) == (["preprocess", *BOTH] if scale == 0.5 else BOTH)
        assert new.executed(*given) == []


@pytest.mark.parametrize(
    "name", ["net.pth", "rescore.pth", str(ANNOTATION), "data/images/val2017.zip", "dekr_bs1.onnx"]
)
def test_a_file_that_only_looks_newer_changes_nothing(chain, name):
    content = (chain.folder / name).read_bytes()
    (chain.folder / name).unlink()
    (chain.folder / name).write_bytes(content)
    os.utime(chain.folder / name, ns=(4_000_000_000_000_000_000,) * 2)
    assert chain.executed() == []


def test_the_outputs_of_new_weights_replace_the_old_ones(chain):
    before = chain.values("out/a_0.npy")
    chain.write("net.pth", "other weights")
    assert chain.executed() == ["export", *BOTH] and (chain.values("out/a_0.npy") != before).any()


def test_weights_that_give_the_same_graph_leave_the_outputs(chain):
    before = chain.stamps()
    chain.write("net.pth", "WEIGHTS")
    assert chain.executed() == ["export"] and chain.rewritten(before) == set()


def test_images_of_another_split_change_nothing(chain):
    chain.write("data/images/train2017.zip", "zip")
    chain.write("data/annotations/person_keypoints_train2017.json", "{}")
    assert chain.executed() == []


# --- replaced while a step runs, and stopped runs


def test_an_image_replaced_while_the_step_runs_is_noticed(new, monkeypatch):
    new.replace_image(7, as_zip=False)
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: new.replace_image(as_zip=False))
        ran = new.go()
    assert ran.code == 1 and "out/a_0.npy: was made of another image of this name" in ran.err
    old = new.values("prep_data/a.npy")
    assert new.executed() == ["preprocess", *BOTH] and (new.values("prep_data/a.npy") != old).any()
    assert new.executed() == []


def test_settings_replaced_while_a_step_runs_are_noticed(new, monkeypatch):
    words = ("--cfg", "own.yaml")
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: new.write("own.yaml", "TEST:\n  NMS_THRE: 0.1\n"))
        assert new.executed(*words) == ALL
    assert new.executed(*words) == ["postprocess"] and new.executed(*words) == []


def stop() -> None:
    raise KeyboardInterrupt


def stopped(chain: Chain, patch: pytest.MonkeyPatch) -> None:
    """A run that is interrupted while it converts the first image."""
    with patch.context() as inner:
        meanwhile(inner, stop)
        ran = chain.go()
    assert ran.code == 130, ran
    error, line = ran.err.splitlines()
    assert error.startswith("error: interrupted")
    assert line == "stopped at the step 'preprocess'; run the same command again to resume; log: pipeline.log"


def test_what_a_stopped_step_made_of_another_image_is_replaced(new, monkeypatch):
    stopped(new, monkeypatch)
    new.replace_image()
    assert new.executed() == ALL
    expected = new.values("prep_data/a.npy")
    for name in ("prep_data", "prep_data_flip"):
        (new.folder / name / "a.npy").unlink()
    assert new.executed() == ["preprocess"]
    np.testing.assert_array_equal(new.values("prep_data/a.npy"), expected)


def test_what_a_stopped_step_finished_is_kept(new, monkeypatch):
    new.executed("--limit", "1")
    before = new.stamps()
    stopped(new, monkeypatch)
    assert new.executed() == ["preprocess", *BOTH]
    assert not {name for name in new.rewritten(before) if "/a" in name}


def test_tensors_that_no_run_recorded_stay(new):
    (new.folder / "prep_data").mkdir()
    (new.folder / "prep_data" / "a.npy").write_text("by hand")
    ran = new.go()
    assert ran.code == 1 and "prep_data: holds 1 unrecorded tensors" in ran.err
    assert (new.folder / "prep_data" / "a.npy").read_text() == "by hand"
    assert "stopped at the step 'preprocess'" in ran.err.splitlines()[-1]


def test_the_code_of_the_step_that_fails_is_that_of_the_run(new, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("no such network; name another")

    monkeypatch.setattr("dekr_infer.cli.export.export", fail)
    ran = new.go()
    assert ran.code == 2 and "error: no such network; name another" in ran.err.splitlines()
    assert list(steps(ran.out)) == ["preprocess", "export"]
    assert ran.err.splitlines()[-1].startswith("stopped at the step 'export'; run the same command again")
    text = (new.folder / "pipeline.log").read_text()
    assert "== export\n" in text and "stopped at the step" in text


def test_a_second_run_at_the_same_time_is_refused(new, monkeypatch):
    seen: list[Ran] = []
    meanwhile(monkeypatch, lambda: seen.append(new.go()))
    assert new.executed() == ALL
    assert_refused(seen[0], 1, "pipeline: another run is writing here")


# --- settings


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        (("RESCORE.VALID", "False"), ["postprocess"]),
        (("TEST.NMS_THRE", "0.1"), ["postprocess"]),
        (("TEST.FLIP_TEST", "False"), ["postprocess"]),
        (("DATASET.MAX_NUM_PEOPLE", "9"), ["postprocess"]),
        (("MODEL.SPEC.STEM_CHANNELS", "4"), ["export"]),
        (("DATASET.DATA_FORMAT", "zip"), []),
    ],
)
def test_a_setting_concerns_only_the_steps_that_use_it(chain, pairs, wanted):
    before = chain.stamps()
    assert chain.executed(*pairs) == wanted and chain.executed(*pairs) == [] and chain.rewritten(before) == set()


def test_a_changed_configuration_file_concerns_only_what_it_changes(chain):
    words = ("--cfg", "own.yaml")
    assert chain.executed(*words) == [] or chain.executed(*words) == []
    chain.write("own.yaml", "TEST:\n  NMS_THRE: 0.2\n", date=1)
    assert chain.executed(*words) == ["postprocess"]
    chain.write("own.yaml", "# a comment\nTEST:\n  NMS_THRE: 0.2\n")
    assert chain.executed(*words) == []


@pytest.mark.parametrize(("flags", "last"), [((), "postprocess"), (("--stream",), "evaluate")])
def test_another_category_repeats_the_evaluation_alone(new, flags, last):
    content = json.loads((new.folder / ANNOTATION).read_text())
    rider = content["categories"][0] | {"id": 2, "name": "rider"}
    riders = [person | {"category_id": 2, "id": person["id"] + 100} for person in content["annotations"]]
    content |= {"categories": [*content["categories"], rider], "annotations": content["annotations"] + riders}
    new.write(str(ANNOTATION), json.dumps(content))
    results = new.folder / "results/keypoints_val2017_results.json"
    for number, (name, done) in enumerate((("person", None), ("rider", [last]), ("rider", [])), 1):
        executed = new.executed(*flags, "--category", name)
        assert executed == done if done is not None else last in executed
        assert {entry["category_id"] for entry in json.loads(results.read_text())} == {min(number, 2)}


def test_more_images_are_added_to_those_that_are_done(new):
    assert new.executed("--limit", "2") == ALL
    before = new.stamps()
    assert new.executed() == ["preprocess", *BOTH]
    assert {Path(name).name[0] for name in new.rewritten(before)} == {"c"}


@pytest.mark.parametrize("words", [("TEST.NMS_THR", "0.1"), ("TEST.NMS_THRE", "0.1", "odd"), ("--bakend", "om")])
def test_a_mistyped_setting_is_refused_before_anything_is_made(new, words):
    assert_refused(new.go(*words), 2)
    assert not (new.folder / "pipeline.log").exists() and not (new.folder / "prep_data").exists()


def test_the_rescoring_file_is_wanted_only_when_it_is_used(new):
    (new.folder / "rescore.pth").unlink()
    assert_refused(new.go(), 1, "rescore.pth: not there")
    assert_refused(new.go("RESCORE.VALID", "True"), 1, "rescore.pth: not there")
    assert new.executed("RESCORE.VALID", "False") == ALL
    (new.folder / "net.pth").unlink()
    assert_refused(new.go("RESCORE.VALID", "False"), 1, "net.pth: not there")


# --- the NPU


@pytest.fixture
def om(new: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "npu-smi").symlink_to(FAKES / "npu-smi")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    return new


def test_another_chip_is_converted_for(om, monkeypatch):
    def chip() -> str:
        return str(json.loads((om.folder / "dekr_bs1.om").read_text())["chip"])

    words = ("--backend", "om")
    assert om.executed(*words) == [*ALL[:2], "convert", *BOTH] and chip() == "Ascend310P3"
    assert om.executed(*words, "--chip", "310P3") == []
    monkeypatch.setenv("CHIP_NAME", "910B4")
    assert om.executed(*words) == ["convert", *BOTH] and chip() == "Ascend910B4"
    assert om.executed(*words, "--chip", "910B3") == ["convert", *BOTH]


def test_the_device_chooses_among_different_chips(om, monkeypatch):
    monkeypatch.setenv("NPU_SMI_LAYOUT", "mixed")
    assert_refused(om.go("--backend", "om"), 1, "different chips", "--device")
    om.executed("--backend", "om", "--device", "1")
    assert json.loads((om.folder / "dekr_bs1.om").read_text())["chip"] == "Ascend310"


def test_outputs_of_the_other_backend_are_never_passed_off(om):
    assert om.executed() == ALL
    assert om.executed("--backend", "om") == ["convert", *BOTH] and om.executed("--backend", "om") == []
    assert om.executed() == BOTH and om.executed() == []


def test_outputs_that_a_tool_wrote_by_hand_are_replaced(chain):
    """As by ais_bench typed by hand, which knows nothing of records."""
    wanted = (chain.folder / "out" / "a_0.npy").read_bytes()
    for path in (chain.folder / "out").iterdir():
        np.save(path, np.load(path) + 1)
    record_path(chain.folder / "out").unlink()
    assert chain.executed() == ["infer"] and (chain.folder / "out" / "a_0.npy").read_bytes() == wanted


def test_streaming_gives_the_same_results_without_a_tensor(chain):
    wanted = (chain.folder / "results" / "keypoints_val2017_results.json").read_bytes()
    for name in ("prep_data", "prep_data_flip", "out", "out_flip", "results"):
        shutil.rmtree(chain.folder / name)
    assert chain.executed("--stream") == ["evaluate"] and chain.executed("--stream") == []
    assert (chain.folder / "results" / "keypoints_val2017_results.json").read_bytes() == wanted
    assert not list(chain.folder.rglob("*.npy"))
    chain.write("net.pth", "other weights")
    assert chain.executed("--stream") == ["export", "evaluate"]
    assert (chain.folder / "results" / "keypoints_val2017_results.json").read_bytes() != wanted
    assert chain.executed("--stream", "TEST.NMS_THRE", "0.2") == ["evaluate"]
    chain.replace_image()
    assert chain.executed("--stream", "TEST.NMS_THRE", "0.2") == ["evaluate"]


@pytest.mark.parametrize("words", [(), ("--stream",)])
def test_the_last_step_writes_a_report_and_one_that_is_gone_again(chain, words):
    page = chain.folder / "report.html"
    first = page.read_bytes()
    chain.executed(*words)
    page.unlink()
    ran = chain.go(*words)
    assert ran.code == 0 and "\nreport: report.html\n" in ran.out
    latency = json.loads(page.with_suffix(".json").read_text())["latency"]
    assert page.read_bytes()[:200] == first[:200] and latency[-1]["passes"] == 2 * len(SIZES)


def test_a_set_without_annotations_has_no_report(chain):
    path = annotation_path(chain.folder / "data", "val2017")
    content = json.loads(path.read_text())
    del content["annotations"], content["categories"][0]["keypoints"]
    chain.write(str(path.with_name("image_info_val2017.json")), json.dumps(content))
    path.unlink()
    for name in ("report.html", "report.json"):
        (chain.folder / name).unlink()
    ran = chain.go()
    assert ran.code == 0 and "no report: " in ran.out and "metrics: results/metrics.json" in ran.out
    assert "\nreport: " not in ran.out and not (chain.folder / "report.html").exists()
    assert chain.executed() == []


def test_streaming_is_for_the_cpu(new):
    assert_refused(new.go("--stream", "--backend", "om"), 2, "--stream runs on the CPU", "leave out --backend om")
