"""Odd, but no fault: strange images, sets without people, crowds, output that cannot be printed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from dekr_infer.cli import app
from dekr_infer.data.images import decode_image
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import NO_THREADS
from dekr_infer.geometry import PUBLISHED_SIZES, Size, cells
from dekr_infer.pose.preprocess import mirror, normalise, warp
from dekr_infer.storage.run_record import read_record
from tests.support.coco_files import write_annotation, write_images, write_outputs
from tests.support.commands import assert_refused
from tests.support.images import colourful, encode, with_thumbnail
from tests.support.workspace import EVALUATE, INFER, POSTPROCESS, PREPROCESS, Place, undisturbed_run

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A set without images yet."""
    (tmp_path / "source" / "coco").mkdir(parents=True)
    return Place(tmp_path, PREPROCESS, tmp_path / "source")


def cmyk_jpeg(size: Size, level: int) -> bytes:
    """A JPEG of four components, as printers use, each of them flat; its Huffman tables are those of a grey one."""
    grey = encode(np.full((8, 8), 128, np.uint8), ".jpg")
    tables = b""
    position = 2
    while grey[position + 1] != 0xDA:
        length = int.from_bytes(grey[position + 2 : position + 4], "big")
        if grey[position + 1] in (0xDB, 0xC4):
            tables += grey[position : position + 2 + length]
        position += 2 + length
    flat = flat_codes(grey, level)
    blocks = -(-size.h // 8) * -(-size.w // 8)
    bits = "".join(flat[0] * 4 if block == 0 else flat[1] * 4 for block in range(blocks))
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = bytes(
        [8, *size.h.to_bytes(2, "big"), *size.w.to_bytes(2, "big"), 4, *(v for n in range(1, 5) for v in (n, 0x11, 0))]
    )
    scan = bytes([4, *(v for n in range(1, 5) for v in (n, 0)), 0, 63, 0])
    adobe = b"Adobe\x00\x64\x00\x00\x00\x00\x00"
    parts = [segment(0xEE, adobe), tables, segment(0xC0, frame), segment(0xDA, scan), data]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def flat_codes(jpeg: bytes, level: int) -> tuple[str, str]:
    """The bits of a flat block, after nothing and after an equal one; `level` is its DC value in quantised steps."""
    codes = {}
    start = jpeg.index(b"\xff\xc4")
    while jpeg[start + 1] == 0xC4:
        length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
        body = jpeg[start + 4 : start + 2 + length]
        while body:
            kind, counts = body[0], body[1:17]
            code, at = 0, 17
            for bits, count in enumerate(counts, 1):
                for _ in range(count):
                    codes.setdefault((kind, body[at]), f"{code:0{bits}b}")
                    code, at = code + 1, at + 1
                code <<= 1
            body = body[at:]
        start += 2 + length
    size = abs(level).bit_length()
    value = f"{level if level > 0 else level + (1 << size) - 1:0{size}b}" if size else ""
    end = codes[0x10, 0]
    return codes[0, size] + value + end, codes[0, 0] + end


PROGRESSIVE = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
PICTURES = {
    "grey.jpg": (Size(40, 60), lambda size: encode(colourful(size)[:, :, 0], ".jpg")),
    "cmyk.jpg": (Size(40, 60), lambda size: cmyk_jpeg(size, 30)),
    "progressive.jpg": (Size(40, 60), lambda size: cv2.imencode(".jpg", colourful(size), PROGRESSIVE)[1].tobytes()),
    "thumbnail.jpg": (Size(40, 60), lambda size: with_thumbnail(encode(colourful(size), ".jpg"))),
    "one.jpg": (Size(1, 1), lambda size: encode(colourful(size), ".jpg")),
    "line.jpg": (Size(20, 20000), lambda size: encode(colourful(size), ".jpg")),
    "post.jpg": (Size(20000, 20), lambda size: encode(colourful(size), ".jpg")),
    "sub/folder.png": (Size(30, 30), lambda size: encode(colourful(size))),
}  # fmt: skip


def test_strange_images_become_tensors_like_any_other(place):
    coco = place.inputs / "coco"
    encoded = {name: make(size) for name, (size, make) in PICTURES.items()}
    write_annotation(coco, {name: size for name, (size, _) in PICTURES.items()})
    source = write_images(coco, encoded)
    ran = place.run()
    assert ran.code == 0 and ran.err == ""
    for name, (size, _) in PICTURES.items():
        image = decode_image(ImageFiles(source).read(name), name)
        assert image.shape == (*size, 3)
        warped = warp(image, PUBLISHED_SIZES.place(size).input)
        for folder, pixels in (("prep_data", warped), ("prep_data_flip", mirror(warped))):
            tensor = np.load(place.outputs / folder / f"{Path(name).stem}.npy")
            np.testing.assert_array_equal(tensor, normalise(pixels))


ODD_NAMES = ("IMG.2024.jpg", "cam1/x.jpg", "cam2/x.jpg", "x.png", f"{'é' * 123}.jpg")


def test_names_that_no_tensor_can_have_give_the_same_people_as_others(tmp_path):
    stages = (PREPROCESS, INFER, POSTPROCESS, EVALUATE)
    sizes = [Size(40 + number, 60 - number) for number in range(len(ODD_NAMES))]
    plain, odd = (
        undisturbed_run(tmp_path / which, stages, dict(zip(names, sizes, strict=True)))
        for which, names in (("plain", "abcde"), ("odd", ODD_NAMES))
    )
    for folder in ("results", "evaluated"):
        file = f"w/{folder}/keypoints_val2017_results.json"
        assert (plain / file).read_bytes() == (odd / file).read_bytes()
    entries = read_record(odd / "w" / "prep_data_record.jsonl").entries
    assert [entry.inputs["file_name"] for entry in entries.values()] == list(ODD_NAMES)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in entries)


def test_four_colours_are_mixed_and_one_is_copied_to_three():
    printed = decode_image(cmyk_jpeg(Size(16, 24), 30), "cmyk.jpg")
    assert printed.min() == printed.max() > 0, "a flat grey"
    darker = decode_image(cmyk_jpeg(Size(16, 24), -20), "cmyk.jpg")
    assert darker.max() < printed.min()
    grey = decode_image(encode(colourful(Size(9, 7))[:, :, 0], ".jpg"), "grey.jpg")
    assert (grey[:, :, 0] == grey[:, :, 1]).all() and (grey[:, :, 0] == grey[:, :, 2]).all() and np.ptp(grey) > 50


@pytest.fixture
def evaluated(tmp_path: Path) -> Place:
    """A crowd of 45 in the first image, nobody in the second; nobody is annotated anywhere."""
    source = tmp_path / "source"
    sizes = {"crowd.jpg": Size(60, 60), "empty.jpg": Size(60, 60)}
    write_annotation(source / "coco", sizes)
    h, w = cells(PUBLISHED_SIZES.place(Size(60, 60)).input)
    rng = np.random.default_rng(0)
    for name, count in (("crowd", 45), ("empty", 0)):
        heat, offset = np.zeros((18, h, w), np.float32), np.zeros((34, h, w), np.float32)
        heat[:17] = 0.5
        offset[:] = rng.normal(0, 3, (34, 1, 1))
        for person in range(count):
            heat[17, 10 + 12 * (person // 9), 10 + 12 * (person % 9)] = 0.3 + person / 100
        write_outputs(source / "out", name, heat, offset)
        write_outputs(source / "out_flip", name, heat[:, :, ::-1], 0.9 * offset)
    for name in ("rescore.pth", "model.pth"):
        (source / name).touch()
    return Place(tmp_path, POSTPROCESS, source)


def test_the_thirty_best_of_a_crowd_are_kept_and_no_people_is_no_metrics(evaluated):
    ran = evaluated.run(pairs=("RESCORE.VALID", "False", "DATASET.MAX_NUM_PEOPLE", "30"))
    assert ran.code == 0 and ran.err == "" and "2 images, 30 people, nobody in 1 images" in ran.out
    metrics = json.loads((evaluated.outputs / "results" / "metrics.json").read_text())
    assert set(metrics["figures"].values()) == {-1.0}, "COCO's word for nobody annotated"
    assert metrics["warnings"] == {}
    results = json.loads((evaluated.outputs / "results" / "keypoints_val2017_results.json").read_text())
    assert min(entry["score"] for entry in results) == pytest.approx(0.5 * 0.45)


def test_output_that_cannot_be_printed_is_an_error(evaluated):
    command = evaluated.command(pairs=("RESCORE.VALID", "False"))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=evaluated.inputs, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 1
    assert (
        done.stderr == "error: standard output: No space left on device; resolve this and run the same command again\n"
    )


def test_a_folder_whose_name_is_no_text_is_written_and_named(evaluated):
    strange = os.fsencode(str(evaluated.outputs / "r")) + b"\xff"
    command = [os.fsencode(word) for word in evaluated.command("--output", "x", pairs=("RESCORE.VALID", "False"))]
    command[command.index(b"x")] = strange
    done = subprocess.run(command, cwd=evaluated.inputs, capture_output=True)
    assert done.returncode == 0, done
    assert rb"/r\udcff/keypoints_val2017_results.json" in done.stdout
    assert sorted(os.listdir(strange)) == [b"keypoints_val2017_results.json", b"metrics.json"]


def test_replaced_tensors_are_run_again_though_they_look_older(tmp_path):
    """Tensors of the other pass under the same names, with an older date, are not taken for those that were run."""
    place = Place(undisturbed_run(tmp_path, (PREPROCESS, INFER)), INFER)
    before = place.written()
    for name in ("prep_data", "prep_data_flip"):
        (place.inputs / name).rename(place.inputs / f"{name}_")
    shutil.copytree(place.inputs / "prep_data_flip_", place.inputs / "prep_data")
    shutil.copytree(place.inputs / "prep_data_", place.inputs / "prep_data_flip")
    for path in place.inputs.glob("prep_data*/*.npy"):
        os.utime(path, ns=(1, 1))
    assert place.run().code == 0
    after = place.written()
    for name in before:
        if name.startswith("out/"):
            assert after[name] == before[name.replace("out/", "out_flip/")]


# -- few threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [PREPROCESS, EVALUATE])
def test_a_thread_that_cannot_be_started_is_told_as_it_is(stage, tmp_path, monkeypatch):
    """As under `ulimit -u`, which does not count for root."""
    place = Place(undisturbed_run(tmp_path, (PREPROCESS,)), stage)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        ran = place.run("--output", "../w/again")
    assert_refused(ran, 1, NO_THREADS)
    assert place.run("--output", "../w/again").code == 0


def test_a_process_that_cannot_be_started_is_told_as_it_is(capsys):
    def work() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    assert app.run(work) == 1 and capsys.readouterr().err == f"error: {NO_THREADS}\n"
