"""`dekr report`, `dekr compare` and `--report`: files, verdicts, and runs that do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dekr_infer.cli import compare as compare_command
from dekr_infer.cli import report as report_command
from dekr_infer.data.coco import load_data_set
from dekr_infer.evaluation.coco_metrics import coco_metrics
from dekr_infer.storage.atomic import sha256
from tests.support.coco_files import write_images
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.folders import names_in
from tests.support.images import colourful, encode
from tests.support.planted import IDS, SIZE, moved, perfect, write_people
from tests.support.workspace import EVALUATE, INFER, POSTPROCESS, PREPROCESS, Place, undisturbed_run

RESULTS = "keypoints_val2017_results.json"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A data set with images, and two runs on it, `a` perfect and `b` with a missed wrist; it is the current folder."""
    write_people(tmp_path / "coco")
    write_images(tmp_path / "coco", {name: encode(colourful(SIZE), ".jpg") for name in ("a.jpg", "b.jpg")})
    write_run(tmp_path, "a", perfect(), flip=True)
    worse = perfect()
    moved(worse[0], 9, by=-300)
    write_run(tmp_path, "b", worse, flip=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(place: Path, name: str, results: list[dict[str, Any]], **settings: object) -> None:
    """Results and metrics.json as the commands write them."""
    folder = place / name
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(results))
    figures = coco_metrics(load_data_set(place / "coco", "val2017"), results, IDS)
    content = {
        "figures": figures,
        "counts": {"pictures": 2, "evaluated": 2},
        "settings": settings,
        "sha256": {"results": sha256(folder / RESULTS)},
    }
    (folder / "metrics.json").write_text(json.dumps(content))


def report(*words: object) -> Ran:
    return run_command(report_command.main, *words, "DATASET.ROOT", "coco")


def compare(*words: object) -> Ran:
    return run_command(compare_command.main, *words, "DATASET.ROOT", "coco")


# -- report ------------------------------------------------------------------------------------------------------------


def test_the_report_is_written_beside_the_results_with_its_numbers(place):
    ran = report("--results", f"a/{RESULTS}", "--expect", 0.99, "--tolerance", 0.02)
    assert ran == Ran(0, "report: a/report.html\n", "")
    assert names_in(place / "a") == [RESULTS, "metrics.json", "report.html", "report.json"]
    text, numbers = (place / "a/report.html").read_text(), json.loads((place / "a/report.json").read_text())
    assert numbers["verdict"]["state"] == "as expected" and "As expected" in text
    assert numbers["settings"] == [["flip", True]] and text.count("data:image/jpeg") == 2


def test_results_alone_and_without_images_make_a_report_that_tells(place):
    shutil.rmtree("coco/images")
    Path("a/metrics.json").unlink()
    assert report("--results", f"a/{RESULTS}", "--output", "sub/r.html").code == 0
    text = Path("sub/r.html").read_text()
    assert "no metrics.json of this run" in text and "nothing is drawn" in text and "No expected AP" in text


def test_metrics_of_other_results_are_refused(place):
    shutil.copy(f"b/{RESULTS}", f"a/{RESULTS}")
    assert_refused(report("--results", f"a/{RESULTS}"), 1, "a/metrics.json: is not of the results", "evaluate again")
    assert not Path("a/report.html").exists()


def test_metrics_of_another_data_set_are_refused(place):
    content = json.loads(Path("a/metrics.json").read_text())
    content["figures"]["AP .5"] = 0.5
    Path("a/metrics.json").write_text(json.dumps(content))
    assert_refused(report("--results", f"a/{RESULTS}"), 1, "has AP .5 0.500000", "gives 1.000000", "--report")


def test_a_run_on_the_first_images_is_reported_on_those(place):
    results = perfect()[:2]
    figures = coco_metrics(load_data_set("coco", "val2017"), results, [1000])
    Path(f"a/{RESULTS}").write_text(json.dumps(results))
    content = {"figures": figures, "counts": {"pictures": 2, "evaluated": 1}}
    content["sha256"] = {"results": sha256(Path(f"a/{RESULTS}"))}
    Path("a/metrics.json").write_text(json.dumps(content))
    assert report("--results", f"a/{RESULTS}").code == 0
    assert json.loads(Path("a/report.json").read_text())["counts"]["images"] == 1
    assert "1 images left out" in Path("a/report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (("--output", "r.json"), 2, "r.json does not end in .html"),
        (("--expect", "70"), 2, "70 is not a number from 0 to 1"),
        (("--times", "out"), 1, "out_summary.json: cannot be read"),
        (("--results", "none.json"), 1, "none.json: cannot be read"),
        (("--results", "a/metrics.json"), 1, "a/metrics.json: not a COCO keypoint result file"),
    ],
)
def test_mistakes_are_one_line(place, flags, code, part):
    assert_refused(report("--results", f"a/{RESULTS}", *flags), code, part)


def test_postprocess_and_evaluate_write_the_report_of_their_run(tmp_path):
    folder = undisturbed_run(tmp_path / "run", (PREPROCESS, INFER))
    numbers = {}
    for stage in (POSTPROCESS, EVALUATE):
        ran = Place(folder, stage).run("--report", f"../w/{stage}.html")
        assert ran.code == 0 and f"report: ../w/{stage}.html" in ran.out, ran
        numbers[stage] = json.loads((folder / "w" / f"{stage}.json").read_text())
    first, second = numbers[POSTPROCESS], numbers[EVALUATE]
    assert first["metrics"] == second["metrics"] and first["kinds"] == second["kinds"]
    assert [(row["size"], row["passes"]) for row in second["latency"]] == [("512x512", 6)]
    assert dict(second["settings"])["flip"] is True


# -- compare -----------------------------------------------------------------------------------------------------------

PLACES = {
    "folders": ("a", "b"),
    "results": (f"a/{RESULTS}", f"b/{RESULTS}"),
    "metrics": ("a/metrics.json", "b/metrics.json"),
    "mixed": ("a", f"b/{RESULTS}"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_two_runs_are_compared_however_they_are_named(place, kind):
    ran = compare("--resamples", 20, *PLACES[kind])
    assert ran.code == 0 and ran.err == ""
    assert "metrics: AP: " in ran.out and "settings: flip: True -> False" in ran.out
    assert "AP moved by -0." in ran.out and ran.out.endswith("report: comparison.html\n")
    numbers, text = json.loads(Path("comparison.json").read_text()), Path("comparison.html").read_text()
    assert [entry["id"] for entry in numbers["moved"]] == [1000] and numbers["joints"][0]["joint"] == "left_wrist"
    assert numbers["causes"] == [{"name": "settings: flip", "first": "True", "second": "False"}]
    assert text.count("data:image/jpeg") == 1 and "settings: flip" in text


def test_metrics_alone_are_compared_without_data_set(place):
    for name in ("a", "b"):
        Path(name, RESULTS).unlink()
    shutil.rmtree("coco")
    ran = compare("a", "b")
    assert ran.code == 0 and "Whether the difference is luck is not known" in ran.out
    assert json.loads(Path("comparison.json").read_text())["bootstrap"] is None


def test_results_alone_are_compared_and_a_run_with_itself_has_not_moved(place):
    for name in ("a", "b"):
        Path(name, "metrics.json").unlink()
    ran = compare("--resamples", 5, "a", "b")
    assert ran.code == 0 and "AP: " in ran.out
    assert json.loads(Path("comparison.json").read_text())["causes"] is None
    assert "Nothing moved." in compare("--resamples", 5, "a", "a").out


def test_a_folder_of_the_pipeline_is_looked_into(place):
    for name in ("a", "b"):
        Path("work", name).mkdir(parents=True)
        shutil.move(name, Path("work", name, "results"))
    assert compare("--resamples", 5, "work/a", "work/b").code == 0


def test_runs_that_cannot_be_compared_are_refused(place):
    Path("empty").mkdir()
    assert_refused(compare("a", "empty"), 1, f"empty: holds neither {RESULTS} nor metrics.json")
    assert_refused(compare("a", "none"), 1, "none: cannot be read")
    assert_refused(run_command(compare_command.main, "a"), 2, "--help")
    assert_refused(compare("a", "b", "--output", "x.html"), 2, "--output comes after A and B")
    Path(f"b/{RESULTS}").unlink()
    Path("a/metrics.json").unlink()
    assert_refused(compare("a", "b"), 1, "a: the other run has no results")
    assert not Path("comparison.html").exists()
