"""The predict command: what it finds, where it writes, what it refuses, and videos."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from dekr_infer.cli import predict
from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings
from dekr_infer.data import media
from dekr_infer.detector import Detector
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.model.weights import DEMO, NOTES
from dekr_infer.visualization import video
from tests.support.commands import Ran, assert_refused, run_command
from tests.support.corruption import cut
from tests.support.images import colourful, encode, turned
from tests.support.tiny_models import toy_model
from tests.support.workspace import ROOT, write_rescore_net

FRAMES, RATE = 12, 10.0
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV, the extra video, is not installed")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "net.onnx"
    onnx.save(toy_model(scale=0.02), path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tree of images in `photos`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos" / "a.jpg", 1)
    write(tmp_path / "photos" / "deep" / "a.jpg", 2)
    write(tmp_path / "photos" / "deep" / "b.bmp", 3)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path


def write(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(colourful(Size(60, 90), seed), path.suffix))


def write_video(path: Path, frames: int = FRAMES) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (90, 60))
    for seed in range(frames):
        writer.write(colourful(Size(60, 90), seed))
    writer.release()


def run(graph: Path, *words: object) -> Ran:
    return run_command(predict.main, "--model", graph, "--threads", 1, *words)


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- images ------------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_same_tree_of_drawings_and_all_people(graph, place):
    ran = run(graph, "photos")
    assert ran.code == 0 and ran.err == "", ran
    assert written(place / "predictions") == ["a.jpg", "deep/a.jpg", "deep/b.bmp.jpg", "people.json"]
    entries = json.loads((place / "predictions/people.json").read_text())
    detector = Detector(graph, threads=1)
    for number, name in enumerate(("photos/a.jpg", "photos/deep/a.jpg", "photos/deep/b.bmp"), start=1):
        found = [entry for entry in entries if entry["file_name"] == name]
        expected = detector(name).to_coco(number, 1)
        assert found == [entry | {"file_name": name} for entry in expected] and found
    assert f"3 images, {len(entries)} people" in ran.out


def test_drawings_are_those_of_the_thresholds(graph, place):
    assert run(graph, "--min_score", 0.5, "--min_joint_score", 0.3, "photos/deep/b.bmp").code == 0
    people = Detector(graph, threads=1)("photos/deep/b.bmp")
    drawn = people.draw("photos/deep/b.bmp", min_score=0.5, min_joint_score=0.3)
    found = cv2.imread("predictions/b.bmp.jpg")
    assert np.array_equal(found, cv2.imdecode(cv2.imencode(".jpg", drawn)[1], cv2.IMREAD_COLOR))
    assert run(graph, "--min_score", 1, "photos/deep/b.bmp").code == 0
    assert len(json.loads(Path("predictions/people.json").read_text())) == len(people) > 0


def test_several_scales_of_the_configuration_are_merged(graph, place):
    Path("scales.yaml").write_text("TEST:\n  SCALE_FACTOR: [0.5, 1, 2]\n  DECREASE: 0.9\n  FLIP_TEST: False\n")
    assert run(graph, "--no_overlays", "--cfg", "scales.yaml", "photos/a.jpg").code == 0
    found = json.loads(Path("predictions/people.json").read_text())
    settings = decode_settings(load_config("scales.yaml"))
    people = [
        Detector(graph, settings, flip=False, scales=scales, threads=1)("photos/a.jpg").to_coco(1, 1)
        for scales in ((0.5, 1, 2), (1,))
    ]
    assert found == [entry | {"file_name": "photos/a.jpg"} for entry in people[0]] and people[0] != people[1]


def test_json_lines_have_a_line_for_every_image_also_without_people(graph, place):
    cv2.imwrite("photos/black.png", np.zeros((60, 90, 3), np.uint8))
    assert run(graph, "--no_overlays", "--json", "out/all.jsonl", "photos").code == 0
    assert written(place / "out") == ["all.jsonl"] and not Path("predictions").exists()
    found = {line["file_name"]: line for line in lines(place / "out/all.jsonl")}
    assert len(found) == 4 and found["photos/black.png"]["people"] == []
    assert [found["photos/a.jpg"][key] for key in ("height", "width")] == [60, 90]


def test_without_people_the_json_is_an_empty_list(graph, place):
    cv2.imwrite("black.png", np.zeros((60, 90, 3), np.uint8))
    assert run(graph, "black.png").code == 0
    assert json.loads(Path("predictions/people.json").read_text()) == []


def test_equal_names_are_kept_apart_and_a_file_named_twice_is_done_once(graph, place):
    write(place / "other" / "a.jpg", 4)
    write(place / "other" / "c.bmp", 5)
    write(place / "other" / "c.bmp.jpg", 6)
    assert run(graph, "photos/a.jpg", "other", "photos/../photos/a.jpg", "other/*.jpg").code == 0
    overlays = ["other/_c.bmp.jpg", "other/a.jpg", "other/c.bmp.jpg", "people.json", "photos/a.jpg"]
    assert written(place / "predictions") == overlays


def test_a_glob_pattern_finds_files_at_any_depth(graph, place):
    assert run(graph, "--no_overlays", "--json", "p.jsonl", "photos/**/*.jpg").code == 0
    assert [line["file_name"] for line in lines(Path("p.jsonl"))] == ["photos/a.jpg", "photos/deep/a.jpg"]


def test_an_earlier_run_in_the_same_folder_is_no_input(graph, place):
    for _ in range(2):
        assert run(graph, ".").code == 0
    assert written(place / "predictions") == [
        "people.json",
        *(f"photos/{n}" for n in ("a.jpg", "deep/a.jpg", "deep/b.bmp.jpg")),
    ]


def test_a_turned_file_is_turned(graph, place):
    Path("turned.jpg").write_bytes(turned(encode(colourful(Size(60, 90)), ".jpg")))
    assert run(graph, "turned.jpg").code == 0
    assert cv2.imread("predictions/turned.jpg").shape == (90, 60, 3)


def test_rescoring_and_settings_are_used(graph, place):
    write_rescore_net(place / "rescore.pth")
    scores = []
    for words in ([], ["--rescore", "rescore.pth"], ["--cfg", "strict.yaml"]):
        Path("strict.yaml").write_text("TEST:\n  FLIP_TEST: false\n")
        assert run(graph, "--no_overlays", "--json", "p.json", *words, "photos/a.jpg").code == 0
        scores.append([entry["score"] for entry in json.loads(Path("p.json").read_text())])
    assert scores[0] != scores[1] and scores[0] != scores[2]


def test_random_and_demo_weights_are_named(place):
    model = toy_model()
    onnx.helper.set_model_props(model, {"input_sizes": "64,96;96,64", "weights": DEMO})
    onnx.save(model, "demo.onnx")
    assert run(Path("demo.onnx"), "photos/a.jpg").out.splitlines()[0] == NOTES[DEMO]


# -- what is bad -------------------------------------------------------------------------------------------------------


def test_bad_files_are_reported_and_the_others_are_done(graph, place):
    bad = {"empty.jpg": b"", "text.png": b"text", "clip.mp4": b"no video", "photo.heic": b"\0\0\0\x18ftypheic"}
    for name, data in bad.items():
        (place / "photos" / name).write_bytes(data)
    for suffix in (".jpg", ".png", ".bmp", ".webp", ".tif"):
        write(place / "photos" / f"cut{suffix}")
        cut(place / "photos" / f"cut{suffix}", 0.5)
        bad[f"cut{suffix}"] = b""
    os.mkfifo(place / "photos" / "pipe.jpg")
    (place / "photos" / "broken.jpg").symlink_to("nowhere")
    Path("empty").mkdir()
    ran = run(graph, "--no_overlays", "--json", "p.jsonl", "photos", "none.jpg", "no/*.jpg", "empty")
    names = {f"photos/{name}" for name in (*bad, "pipe.jpg", "broken.jpg")} | {"none.jpg", "no/*.jpg", "empty"}
    *warnings, error = [line for line in ran.err.splitlines() if line.startswith(("warning: ", "error: "))]
    assert ran.code == 1 and {line.split(": ")[1] for line in warnings} == names
    assert error.startswith(f"error: inputs that failed: {len(names)}: ") and all(name in error for name in names)
    assert len(lines(Path("p.jsonl"))) == 3 and "3 images" in ran.out


def test_with_nothing_to_do_nothing_is_written(graph, place):
    ran = run(graph, "none.jpg")
    assert ran.code == 1 and ran.err.splitlines()[-1].startswith("error: inputs that failed: 1: none.jpg")
    assert not Path("predictions").exists()


def test_inputs_are_never_overwritten(graph, place):
    Path("link").symlink_to("photos")
    write(place / "other.jpg")
    before = {name: (place / "photos" / name).read_bytes() for name in written(place / "photos")}
    for output, word in (
        ("photos", "photos/a.jpg"),
        ("link", "photos/a.jpg"),
        (".", "photos other.jpg"),
    ):
        assert_refused(run(graph, "--output", output, *word.split()), 2, f"--output {output}: ", "is an input")
    assert {name: (place / "photos" / name).read_bytes() for name in written(place / "photos")} == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name images, folders or videos, or a --camera"),
        (["--json", "people.txt", "a.jpg"], "--json people.txt: its name must end in .json or .jsonl"),
        (["--min_score", "1.5", "a.jpg"], "--min_score: 1.5 is not from 0 to 1"),
        (["--every", "0", "a.jpg"], "--every"),
        (["--no_overlay", "a.jpg"], "--no_overlay"),
    ],
)
def test_a_wrong_command_line_is_one_line(graph, place, words, part):
    assert_refused(run(graph, *words), 2, part)


def test_a_missing_graph_is_one_line_and_leaves_nothing(place):
    assert_refused(run(Path("no.onnx"), "photos"), 1, "no.onnx: cannot be read")
    assert not Path("predictions").exists()


def test_a_failing_network_leaves_no_json(place):
    onnx.save(toy_model(scale=float("inf")), "broken.onnx")
    assert_refused(run(Path("broken.onnx"), "--json", "p.json", "photos/a.jpg"), 1, "NaN or infinite")
    assert written(place) == [
        "broken.onnx",
        "photos/a.jpg",
        "photos/deep/a.jpg",
        "photos/deep/b.bmp",
        "photos/notes.txt",
    ]


def test_torch_is_not_imported_without_a_rescoring_net(graph, place):
    code = f"""if 1:
        import sys
        from dekr_infer.launch import main_of
        assert main_of("predict")(["--model", {str(graph)!r}, "photos/a.jpg"]) == 0
        sys.exit(int("torch" in sys.modules or "scipy" in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, cwd=place).returncode == 0


# -- videos and cameras ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 5])
def test_the_people_of_a_videos_frames(graph, place, every):
    write_video(place / "clip.avi")
    ran = run(graph, "--no_overlays", "--every", every, "--json", "p.jsonl", "clip.avi")
    assert ran.code == 0 and ran.err == "", ran
    found = lines(Path("p.jsonl"))
    assert [line["frame"] for line in found] == list(range(0, FRAMES, every))
    assert [line["image_id"] for line in found] == list(range(1, len(found) + 1))
    assert {line["file_name"] for line in found} == {"clip.avi"} and all(line["people"] for line in found)


def test_frames_are_decoded_as_opencv_does(place):
    write_video(place / "clip.avi")
    (source,) = media.find_sources(["clip.avi"], pytest.fail)
    assert source.rate == RATE and source.frames == FRAMES
    capture = cv2.VideoCapture("clip.avi")
    frames = list(media.frames_of_media([source], media.InputSizes((Size(64, 96),)), pytest.fail))
    assert len(frames) == FRAMES and all(np.array_equal(frame.read(), capture.read()[1]) for frame in frames)


def test_a_video_that_ends_early_is_reported_and_its_frames_count(graph, place):
    write_video(place / "clip.avi", 40)
    cut(place / "clip.avi", 0.5)
    ran = run(graph, "--no_overlays", "--json", "p.jsonl", "clip.avi", "photos/a.jpg")
    assert ran.code == 1 and "clip.avi: ends after" in ran.err and "of 40 frames" in ran.err
    assert lines(Path("p.jsonl"))[-1]["file_name"] == "photos/a.jpg" and len(lines(Path("p.jsonl"))) > 10


def test_without_pyav_a_video_to_draw_is_one_line_before_any_work(graph, place, monkeypatch):
    write_video(place / "clip.avi")
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert_refused(run(graph, "clip.avi"), 1, "pip install 'dekr-infer[video]', or add --no_overlays")
    assert not Path("predictions").exists()


@needs_av
@pytest.mark.parametrize("every", [1, 3])
def test_a_drawn_video_is_h264_at_the_same_speed(graph, place, every):
    import av

    write_video(place / "clip.avi")
    ran = run(graph, "--every", every, "clip.avi")
    assert ran.code == 0 and ran.err == "", ran
    assert written(place / "predictions") == ["clip.avi.mp4", "people.json"]
    with av.open("predictions/clip.avi.mp4") as file:
        (stream,) = file.streams.video
        times = [float(frame.pts * frame.time_base) for frame in file.decode(stream)]
        assert (stream.codec.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 90, 60)
        assert float(stream.average_rate) == pytest.approx(RATE / every)
    assert times == pytest.approx([number / RATE for number in range(0, FRAMES, every)])
    data = Path("predictions/clip.avi.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "it plays while it loads"


@needs_av
def test_a_drawn_video_shows_the_people(graph, place):
    write_video(place / "clip.avi")
    assert run(graph, "clip.avi").code == 0
    detector, source, drawn = (
        Detector(graph, threads=1),
        cv2.VideoCapture("clip.avi"),
        cv2.VideoCapture("predictions/clip.avi.mp4"),
    )
    for _ in range(FRAMES):
        image, found = source.read()[1], drawn.read()[1].astype(int)
        expected = detector(image).draw(image).astype(int)
        assert abs(found - expected).mean() < abs(found - image).mean()


@needs_av
def test_odd_sides_are_made_even_by_repetition(tmp_path):
    image = colourful(Size(61, 91))
    with video.write_video(tmp_path / "odd.mp4", RATE) as add:
        add(image, 0)
    found = cv2.VideoCapture(str(tmp_path / "odd.mp4")).read()[1]
    assert found.shape == (62, 92, 3) and abs(found[:61, :91].astype(int) - image).mean() < 8


@needs_av
def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path):
    def stopped() -> None:
        with video.write_video(tmp_path / "a.mp4", RATE) as add:
            add(colourful(Size(60, 90)), 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped()
    (tmp_path / "file").write_text("")
    refused = pytest.raises(DekrError, match=r"file/a\.mp4: cannot be written")
    with refused, video.write_video(tmp_path / "file" / "a.mp4", RATE) as add:
        add(colourful(Size(60, 90)), 0)
    assert written(tmp_path) == ["file"]


class FakeCamera:
    """Gives images without end, and Ctrl-C after the third."""

    def __init__(self) -> None:
        self.given = 0

    def grab(self) -> bool:
        self.given += 1
        if self.given == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, colourful(Size(60, 90), self.given)

    def release(self) -> None:
        pass


def test_ctrl_c_ends_a_camera_and_keeps_what_was_seen(graph, place, monkeypatch):
    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(media, "_open", lambda source: FakeCamera())
    ran = run(graph, "--no_overlays", "--json", "p.jsonl", "--camera", 0)
    assert ran.code == 0, ran
    found = lines(Path("p.jsonl"))
    assert len(found) == 3 and {line["file_name"] for line in found} == {"camera 0"}
    numbers = [line["frame"] for line in found]
    assert numbers == sorted(set(numbers))


def test_a_camera_that_is_not_there_is_reported(graph, place):
    ran = run(graph, "--no_overlays", "--camera", 63)
    assert ran.code == 1 and "camera 63: cannot be opened; check that it is connected" in ran.err
