"""The report: its numbers, its verdict and reasons, nothing from a file unescaped, and its size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.errors import DekrError
from dekr_infer.evaluation import report
from dekr_infer.evaluation.coco_metrics import METRICS, coco_metrics
from dekr_infer.evaluation.report import drawer, flat, report_content, verdict, write_report
from dekr_infer.geometry import Size
from tests.support.coco_files import keypoints, person, write_annotation, write_images
from tests.support.images import colourful, encode
from tests.support.planted import FIGURES, IDS, SIZE, moved, perfect, result, write_people

NAMES = ("a.jpg", "b.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three people in two images, and an image with nobody."""
    root = tmp_path_factory.mktemp("report")
    write_people(root, *NAMES, "empty.jpg")
    write_images(root, {name: encode(colourful(SIZE), ".jpg") for name in (*NAMES, "empty.jpg")})
    return root


@pytest.fixture(scope="module")
def data(root) -> DataSet:
    return load_data_set(root, "val2017")


def missed_wrists() -> list[dict[str, Any]]:
    results = perfect()
    moved(results[0], 9, 10, by=-300)
    return results


def content_of(data: DataSet, results: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    ids = [image.id for image in data.images]
    return report_content(data, results, ids, **{"run": {}, **changes})


def page(content: dict[str, Any], folder: Path, **changes: Any) -> str:
    write_report(folder / "r.html", content, **{"title": "A run", "draw": None, **changes})
    return (folder / "r.html").read_text()


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_evaluation_and_of_the_planted_errors(data):
    content = content_of(data, missed_wrists())
    ids = [*IDS, 998]
    assert content["metrics"] == coco_metrics(data, missed_wrists(), ids)
    kinds = {kind["kind"]: kind for kind in content["kinds"]}
    assert kinds["miss"]["count"] == 2 and kinds["miss"]["ap"] == pytest.approx(1)
    assert kinds["miss"]["gain"] == pytest.approx(1 - content["metrics"]["AP"])
    assert content["joints"]["left_wrist"] == {"good": 2, "jitter": 0, "inversion": 0, "swap": 0, "miss": 1}
    assert content["counts"] == {
        **{"images": 3, "left_out": 0, "annotated": 3, "found": 3, "detections": 3},
        "images_with_nobody_found": 1,
    }
    assert [entry["id"] for entry in content["worst"]] == [1000]
    assert content["worst"][0]["wrong"] == ["person with OKS 0.88; miss: left wrist, right wrist"]
    assert {entry["id"] for entry in content["random"]} == {999, 998}
    assert [(entry["id"], entry["annotated"]) for entry in content["nobody"]] == [(998, 0)]


def test_the_worst_image_comes_first(data):
    results = missed_wrists()
    moved(results[2], *range(17), by=30)
    assert [entry["id"] for entry in content_of(data, results)["worst"]] == [999, 1000]
    moved(results[0], *range(17), by=500)
    assert [entry["id"] for entry in content_of(data, results)["worst"]] == [1000, 999]


def test_the_reasons_name_the_costliest_kind_first_and_the_worst_joints(data):
    results = missed_wrists()
    results[1]["score"] = 0.1
    moved(results[1], 15, to=FIGURES[1][16, :2])
    why = " ".join(content_of(data, results)["why"])
    assert "3 of 3 annotated people have a detection" in why
    assert re.search(r"would add: miss \(2\): \+0\.\d+, to 0\.\d+; inversion \(1\): \+", why)
    assert "left wrist 33%, right wrist 33%, left ankle 33%" in why
    assert content_of(data, perfect())["why"][-1] == "No single kind of error costs AP."


def test_sizes_count_every_person_once(data):
    content = content_of(data, perfect())
    assert [(row["size"], row["images"], row["people"]) for row in content["input_sizes"]] == [("512x768", 3, 3)]
    rows = {row["size"]: row for row in content["person_sizes"]}
    assert {size: row["people"] for size, row in rows.items() if row["people"]} == {"128 to 192 px": 3}
    assert rows["128 to 192 px"]["AP"] == pytest.approx(1) and rows["0 to 32 px"]["AP"] == -1


def test_precision_is_one_until_the_recall_that_is_reached(data):
    content = content_of(data, perfect()[1:])
    for curve in content["precision"].values():
        assert curve[:67] == pytest.approx([1] * 67) and curve[67:] == [0] * 34


@pytest.mark.parametrize(("order", "wanted"), [((0.9, 0.8, 0.1), 1), ((0.1, 0.8, 0.9), -1), ((0.5, 0.5, 0.5), None)])
def test_ranking_is_the_correlation_of_score_and_oks(data, order, wanted):
    results = perfect()
    for entry, score, by in zip(results, order, (0, 8, 20), strict=True):
        moved(entry, *range(17), by=by)
        entry["score"] = score
    ranking = content_of(data, results)["ranking"]
    assert ranking["spearman"] == (None if wanted is None else pytest.approx(wanted))
    assert np.sum(ranking["density"]) == ranking["detections"] == 3
    assert ranking["scores"] == [min(order), max(order)]


def test_results_that_find_nobody_and_images_with_nobody_make_a_report(data, tmp_path):
    assert "AP 0.000" in page(content_of(data, []), tmp_path)
    nobody = report_content(data, [], [998], run={})
    assert nobody["why"] == ["Nobody is annotated in these images, so there is no AP."]
    assert "<strong>AP -</strong>" in page(nobody, tmp_path)


@pytest.mark.parametrize(
    ("expected", "tolerance", "state"),
    [(None, 0.003, "no expectation"), (0.68, 0.003, "as expected"), (0.68, 0.001, "not as expected")],
)
def test_the_verdict_is_within_the_tolerance(expected, tolerance, state):
    assert verdict(0.678, expected, tolerance)["state"] == state


def test_values_are_named_by_their_path_and_lists_joined():
    assert flat({"a": {"b": 1, "none": None}, "c": ["x", "x", "y"]}) == [("a b", 1), ("c", "x, y")]
    assert flat(None) == flat({}) == []


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_the_json_has_the_same_numbers(data, tmp_path):
    content = content_of(data, missed_wrists(), expected=0.9, times={1000: [10.0, 30.0]})
    text = page(content, tmp_path)
    ap = f"{content['metrics']['AP']:.3f}"
    assert 0 < text.index(f"AP {ap}") < text.index("Not as expected") < text.index("<h2")
    for name in METRICS:
        value = content["metrics"][name]
        assert f"<dt>{name}</dt><dd>{'-' if value == -1 else f'{value:.3f}'}</dd>" in text
    assert '<td class="n">20.0</td>' in text
    assert json.loads((tmp_path / "r.json").read_text()) == {"title": "A run", **json.loads(json.dumps(content))}


def test_everything_that_changes_ap_is_on_the_page(data, tmp_path):
    run = {
        "settings": {"flip": True, "NMS_THRE": 0.05},
        "versions": {"numpy": "2.2.6"},
        "sha256": {"graphs": ["abc123", "abc123"]},
        "warnings": {"ranking": "the scores do not rank them"},
        "seconds": {"decoding": 1.25},
        "weights": "demo",
    }
    text = page(content_of(data, perfect(), run=run), tmp_path)
    for part in (
        "NMS_THRE",
        "0.05",
        "2.2.6",
        "abc123",
        "the scores do not rank them",
        "decoding 1.2 s",
        "demo weights",
    ):
        assert part in text
    assert text.count("abc123") == 1


def test_the_page_needs_nothing_from_outside(data, root, tmp_path):
    files = ImageFiles(image_source(root, "val2017"))
    text = page(content_of(data, perfect()), tmp_path, draw=drawer(data, files, perfect()))
    assert text.count("data:image/jpeg;base64,") == 3
    places = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?([^"'\s>)]*)""", text)
    assert places and all(place.startswith(("#", "data:", "image.src")) or not place for place in places), places
    assert "http" not in re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]*|http-equiv", "", text)


HOSTILE = """x"><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }}&amp;\x1b[2J\u202e"""


def test_what_comes_from_files_is_escaped(tmp_path):
    name = HOSTILE.replace("/", "_") + ".jpg"
    data = write_people(tmp_path / "d", name, "b.jpg")
    run = {part: {HOSTILE: HOSTILE} for part in ("settings", "versions", "sha256", "warnings")}
    content = content_of(data, [], run=run | {"weights": HOSTILE, "seconds": {HOSTILE: HOSTILE}})
    text = page(content, tmp_path, title=HOSTILE)
    assert "alert(1)" in text and text.count("<script") == 1 and "<img src=x" not in text
    assert "49" not in re.findall(r"onerror=.{0,40}", text)[0] and "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"""<[^>]*\sonerror""", text)


def test_a_very_long_file_name_is_cut_on_the_page_alone(tmp_path):
    data = write_people(tmp_path / "d", "n" * 5000 + ".jpg", "b.jpg")
    content = content_of(data, [])
    assert "n" * (report.LONGEST_NAME + 1) not in page(content, tmp_path)
    assert content["nobody"][0]["file_name"] == "n" * 5000 + ".jpg"


def test_an_image_that_cannot_be_drawn_is_a_note(data, tmp_path):
    def draw(number: int) -> bytes:
        if number == 1000:
            raise DekrError("a.jpg: is cut short")
        return b"jpeg"

    text = page(content_of(data, missed_wrists()), tmp_path, draw=draw)
    assert "No drawing: a.jpg: is cut short" in text and text.count("data:image/jpeg") == 2


# -- its size ----------------------------------------------------------------------------------------------------------


def many(root: Path, count: int) -> tuple[DataSet, list[dict[str, Any]]]:
    """A person in each of many images, found with noise in nine of ten."""
    sizes = {f"{number:012d}.jpg": Size(480 + number % 97, 640 - number % 101) for number in range(count)}
    people = [person(number + 1, 1000 - number, keypoints(number)) for number in range(count)]
    write_annotation(root, sizes, people)
    rng = np.random.default_rng(0)
    results = []
    for number in range(count):
        if number % 10:
            pose = keypoints(number) + np.column_stack((rng.normal(0, 12, (17, 2)), np.zeros(17)))
            results.append(result(pose, 1000 - number, float(rng.uniform(0.1, 0.9))))
    return load_data_set(root, "val2017"), results


def noise_images(size: Size, count: int) -> bytes:
    """A JPEG that cannot be packed well, as large as one of the report's drawings."""
    rng = np.random.default_rng(0)
    return encode(rng.integers(0, 256, (size.h, count * size.w, 3)).astype(np.uint8), ".jpg")


@pytest.mark.parametrize(("most", "least"), [(80_000, 0), (250_000, 2), (5_000_000, 24)])
def test_the_file_is_never_larger_than_its_cap(tmp_path, most, least):
    data, results = many(tmp_path, 40)
    jpeg = b"\xff" * 40_000
    content = content_of(data, results)
    text = page(content, tmp_path, draw=lambda number: jpeg, most_bytes=most)
    assert len(text.encode()) <= most
    pictures = text.count("data:image/jpeg")
    assert least <= pictures <= most // 53_000
    assert text.count("left out, to keep this file small") == 24 - pictures


@pytest.mark.long
def test_at_five_thousand_images_the_file_has_at_most_five_megabytes(tmp_path):
    data, results = many(tmp_path, 5000)
    jpeg = noise_images(report.TILE, 2)
    text = page(content_of(data, results, run={"seconds": {"all": 1.0}}), tmp_path, draw=lambda number: jpeg)
    assert 1_000_000 < len(text.encode()) <= 5_000_000
    assert text.count("<tr>") < 400, "lists are cut"


def test_lists_do_not_grow_with_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LISTED", 5)
    data, _ = many(tmp_path, 40)
    content = content_of(data, [])
    text = page(content, tmp_path)
    assert len(content["nobody"]) == 40 and "The first 5; all are in the JSON file" in text
    assert text.split('id="nobody"')[1].split("</table>")[0].count("<tr>") == 6


# -- the drawings ------------------------------------------------------------------------------------------------------


def test_a_drawing_has_the_truth_on_the_left_and_each_run_beside_it(data, root):
    import cv2

    files = ImageFiles(image_source(root, "val2017"))
    shapes, panels = [], []
    for runs in ((), ([],), (perfect(), [])):
        pixels = cv2.imdecode(np.frombuffer(drawer(data, files, *runs)(1000), np.uint8), cv2.IMREAD_COLOR)
        shapes.append(pixels.shape[:2])
        panels.append(np.split(pixels.astype(int), 1 + len(runs), axis=1))
    h, w = shapes[0]
    assert h <= report.TILE.h and w <= report.TILE.w and shapes == [(h, w), (h, 2 * w), (h, 3 * w)]
    truth, empty = panels[1]
    assert np.abs(truth - empty).max() > 100, "people are drawn on the left alone"
    first, found, nobody = panels[2]
    assert np.abs(found - first).mean() < np.abs(found - nobody).mean()
