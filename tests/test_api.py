"""The Python API: the README's lines as printed, paths and arrays, threads, plain scripts, and wrong arguments."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from dekr_infer import Detector, People
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.model.weights import RANDOM, TRAINED
from tests.support.images import colourful, encode, turned
from tests.support.tiny_models import toy_model
from tests.support.workspace import write_rescore_net

ROOT = Path(__file__).resolve().parents[1]
FENCED = r"```python\n(import cv2\nfrom dekr_infer import Detector\n.*?)```"
LINES = re.search(FENCED, (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README has it: the graph, the rescoring net, a photo."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "models").mkdir()
    onnx.save(toy_model(scale=0.02), folder / "models" / "dekr_bs1.onnx")
    write_rescore_net(folder / "models" / "final_rescore_coco_kpt.pth")
    (folder / "photo.jpg").write_bytes(encode(colourful(Size(60, 90)), ".jpg"))
    return folder


@pytest.fixture(scope="module")
def detector(place: Path) -> Detector:
    return Detector(place / "models" / "dekr_bs1.onnx", threads=1)


def same(one: People, other: People) -> bool:
    return len(one) > 0 and np.array_equal(one.poses, other.poses) and np.array_equal(one.scores, other.scores)


def test_the_five_lines_of_the_readme_run_in_a_plain_script(place):
    assert LINES is not None and len([line for line in LINES[1].splitlines() if line]) == 5
    script = place / "script.py"  # without a main guard
    script.write_text(LINES[1] + "print(people.poses.shape, people.scores)\n")
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=place, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    people = re.match(r"\((\d+), 17, 3\) \[", done.stdout)
    assert people is not None and int(people[1]) > 0
    assert (cv2.imread(str(place / "drawn.jpg")) != cv2.imread(str(place / "photo.jpg"))).any()


def test_a_path_and_its_pixels_give_the_same_people(place, detector):
    path = place / "photo.jpg"
    assert same(detector(path), detector(str(path)))
    assert same(detector(path), detector(cv2.imread(str(path))))


def test_a_turned_file_gives_the_people_of_the_turned_image(place, detector):
    upright = colourful(Size(90, 60), seed=1)
    lying = encode(np.ascontiguousarray(np.rot90(upright)), ".jpg")
    (place / "turned.jpg").write_bytes(turned(lying))
    shown = cv2.rotate(cv2.imdecode(np.frombuffer(lying, np.uint8), cv2.IMREAD_COLOR), cv2.ROTATE_90_CLOCKWISE)
    assert same(detector(place / "turned.jpg"), detector(shown))
    assert detector(place / "turned.jpg").draw(place / "turned.jpg").shape == (90, 60, 3)


def test_four_threads_at_once_find_the_same_people(detector):
    images = [colourful(size, seed) for seed, size in enumerate([Size(60, 90), Size(90, 60), Size(64, 64)] * 4)]
    alone = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector, images))
    assert all(same(*pair) for pair in zip(alone, together, strict=True))


def test_rescoring_changes_the_scores_and_keeps_the_decoded_ones(place, detector):
    net = place / "models" / "final_rescore_coco_kpt.pth"
    plain = detector(place / "photo.jpg")
    rescored = Detector(detector.backend, rescore=str(net))(place / "photo.jpg")
    assert np.array_equal(plain.poses, rescored.poses) and np.array_equal(plain.scores, rescored.decoded_scores)
    assert (plain.scores != rescored.scores).any()


def test_drawing_takes_people_above_a_score_and_leaves_the_image_alone(place, detector):
    image = cv2.imread(str(place / "photo.jpg"))
    people, before = detector(image), image.copy()
    assert (people.draw(image, min_score=0, min_joint_score=0) != image).any()
    assert np.array_equal(people.draw(image, min_score=np.inf), before) and np.array_equal(image, before)


def test_the_kind_of_weights_is_known(detector, tmp_path):
    assert detector.weights == TRAINED
    model = toy_model()
    onnx.helper.set_model_props(model, {"input_sizes": "64,96", "weights": RANDOM})
    onnx.save(model, tmp_path / "random.onnx")
    assert Detector(tmp_path / "random.onnx", threads=1).weights == RANDOM


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (None, "image: is NoneType, expected a path or an array (h, w, 3) uint8 BGR"),
        (7, "image: is int, expected a path"),
        (np.zeros((8, 9), np.uint8), "image: is (8, 9) uint8, expected (h, w, 3) uint8 BGR"),
        (np.zeros((8, 9, 4), np.uint8), "image: is (8, 9, 4) uint8, expected"),
        (np.zeros((8, 9, 3), np.float32), "image: is (8, 9, 3) float32, expected"),
        (np.zeros((0, 9, 3), np.uint8), "image: is (0, 9, 3) uint8, expected"),
        (np.zeros((1, 40_000, 3), np.uint8), "image: is 1x40000 pixels; this program takes at most 32766 a side"),
        ("no.jpg", "no.jpg: cannot be read (No such file or directory); check its name"),
        (str(Path(__file__)), "test_api.py: not an image, or damaged"),
        (str(Path(__file__).parent), "cannot be read (Is a directory)"),
    ],
)
def test_a_wrong_image_is_one_clear_error(detector, image, complaint):
    people = People(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32))
    for use in (detector, people.draw):
        with pytest.raises(DekrError, match=re.escape(complaint)) as error:
            use(image)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"backend": "no.onnx"}, "no.onnx: cannot be read (No such file or directory); export it"),
        ({"backend": str(Path(__file__))}, "test_api.py: not an ONNX file, or cut short"),
        ({"rescore": "no.pth"}, "no.pth: no such rescoring checkpoint"),
        ({"rescore": str(Path(__file__))}, "test_api.py: damaged or no checkpoint"),
        ({"provider": "MagicProvider"}, "has no MagicProvider; it has "),
    ],
)
def test_a_wrong_file_is_one_clear_error(place, arguments, complaint):
    words = {"backend": place / "models" / "dekr_bs1.onnx", "threads": 1} | arguments
    with pytest.raises(DekrError) as error:
        Detector(words.pop("backend"), **words)
    assert complaint in str(error.value) and "\n" not in str(error.value)
