"""Pictures to tensors: docs/reference.md [2] and [5] to [9], and what a run leaves on the disk."""

import json
import os
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from dekr_infer.data.coco import load_data_set
from dekr_infer.data.images import decode_image
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, Placement, Size
from dekr_infer.pose.preprocess import input_size_table, mirror, normalisation, normalise, warp, write_tensors
from dekr_infer.storage import npy as tensors
from tests.support.helpers import colourful, encode, write_annotation, write_pictures

ONE_OF_EACH = (Size(333, 481), Size(601, 600), Size(640, 427), Size(120, 231), Size(500, 256))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def reference_normalise(rgb: np.ndarray) -> torch.Tensor:
    """ToTensor and Normalize, as torchvision's arithmetic goes: (1, 3, h, w) float32."""
    scaled = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).to(torch.float32).div(255)
    return scaled.sub(MEAN[:, None, None]).div(STD[:, None, None])[None]


def reference_tensors(bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines [5] to [9] step by step: RGB, warp, normalise, then flip the tensor and shift it."""
    h, w = bgr.shape[:2]
    input_size = PUBLISHED_SIZES.place(Size(h, w)).input
    scale = 512 / min(h, w)
    middle, reach = np.array([int(w / 2 + 0.5), int(h / 2 + 0.5)]), input_size.w / scale / 2
    source = np.float32([middle, middle + [0, -reach], middle + [-reach, -reach]])
    target = np.float32(
        [
            [input_size.w / 2, input_size.h / 2],
            [input_size.w / 2, input_size.h / 2 - input_size.w / 2],
            [0, input_size.h / 2 - input_size.w / 2],
        ]
    )
    matrix = cv2.getAffineTransform(source, target)
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    warped = cv2.warpAffine(rgb, matrix, (input_size.w, input_size.h), flags=cv2.INTER_LINEAR, borderValue=0)
    tensor = reference_normalise(warped)
    flipped = torch.flip(tensor, [3])
    moved = flipped.clone()
    moved[..., :-3] = flipped[..., 3:]
    return tensor.numpy(), moved.numpy()


# -- values ------------------------------------------------------------------------------------------------------------


def test_the_normalisation_table_is_bit_equal_to_torchs_arithmetic():
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    expected = reference_normalise(every)[0, :, :, 0].numpy()
    assert normalisation().tobytes() == expected.tobytes()


def test_channels_go_from_bgr_to_rgb_and_in_front():
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 5] = (10, 20, 30)  # blue, green, red
    tensor = normalise(image)
    assert tensor.shape == (1, 3, 4, 6) and tensor.dtype == np.float32
    table = normalisation()
    assert tensor[0, :, 1, 5].tolist() == [table[0, 30], table[1, 20], table[2, 10]]
    assert tensor[0, :, 0, 0].tolist() == table[:, 0].tolist()
    buffer = np.empty_like(tensor)
    assert normalise(image, buffer) is buffer
    np.testing.assert_array_equal(buffer, tensor)


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
def test_both_tensors_are_the_references_to_the_last_bit(size):
    image = colourful(size, seed=size.w)
    warped = warp(image, PUBLISHED_SIZES.place(size).input)
    original, flipped = reference_tensors(image)
    np.testing.assert_array_equal(normalise(warped), original)
    np.testing.assert_array_equal(normalise(mirror(warped)), flipped)


def slow_warp(image: np.ndarray, input_size: Size, points: list[tuple[int, int]]) -> np.ndarray:
    """Bilinear values of the picture, black around it, at input size points (x, y)."""
    h, w = image.shape[:2]
    matrix = Placement(Size(h, w), input_size).to_image
    values = []
    for point in points:
        x, y = matrix @ [*point, 1]
        left, top = int(np.floor(x)), int(np.floor(y))
        value = np.zeros(3)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < h and 0 <= column < w:
                value += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
        values.append(value)
    return np.array(values)


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
def test_the_warp_is_bilinear_interpolation_at_the_affines_places(size):
    input_size = PUBLISHED_SIZES.place(size).input
    image = cv2.blur(colourful(size, seed=3), (9, 9))
    rng = np.random.default_rng(0)
    points = list(
        zip(rng.integers(0, input_size.w, 400).tolist(), rng.integers(0, input_size.h, 400).tolist(), strict=True)
    )
    found = warp(image, input_size)[[y for _, y in points], [x for x, _ in points]]
    inside = np.array([cv2.pointPolygonTest(_frame(size, input_size), (float(x), float(y)), True) for x, y in points])
    border = 3 + 512 / min(size)  # where the picture falls to black, OpenCV's places, in 1/32 pixel, make a difference
    difference = np.abs(found - slow_warp(image, input_size, points)).max(axis=1)
    assert difference[np.abs(inside) > border].max() < 2
    assert (found[inside < -border] == 0).all()


def _frame(size: Size, input_size: Size) -> np.ndarray:
    """The picture's outline in the input size."""
    corners = np.array([[0, 0, 1], [size.w - 1, 0, 1], [size.w - 1, size.h - 1, 1], [0, size.h - 1, 1]])
    return (corners @ Placement(size, input_size).to_input.T).astype(np.float32)


def test_beyond_the_picture_is_black_before_normalising():
    size = Size(256, 270)  # 540 of the input size's 768 columns
    tensor = normalise(warp(np.full((*size, 3), 200, np.uint8), PUBLISHED_SIZES.place(size).input))[0]
    black, grey = normalisation()[:, 0], normalisation()[:, 200]
    for side in (slice(0, 113), slice(-113, None)):
        assert (tensor[:, :, side] == black[:, None, None]).all()
    assert (tensor[:, 3:-3, 120:-120] == grey[:, None, None]).all()


def test_a_picture_longer_than_the_input_size_loses_its_ends_on_both_sides():
    size = Size(100, 400)
    image = np.zeros((*size, 3), np.uint8)
    image[:, 90:310] = 255  # 100 to 300 is what fits
    assert PUBLISHED_SIZES.place(size).input == Size(512, 1024)
    assert (warp(image, PUBLISHED_SIZES.place(size).input)[2:-6] == 255).all()


# -- the flipped tensor ------------------------------------------------------------------------------------------------


def test_the_flipped_last_six_columns_are_source_columns_2_1_0_2_1_0():
    numbered = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (5, 20, 3)).copy()
    flipped = mirror(numbered)
    assert flipped[3, -6:, 1].tolist() == [2, 1, 0, 2, 1, 0]
    assert flipped[3, :, 1].tolist() == [*range(16, -1, -1), 2, 1, 0]
    assert numbered[0, :, 0].tolist() == list(range(20)), "the picture itself stays as it was"


@pytest.mark.parametrize("input_size", PUBLISHED_SIZES, ids=str)
def test_a_cell_of_the_flipped_pass_stands_on_its_partners_pixel(input_size):
    original = normalise(colourful(input_size))[0]
    flipped = normalise(mirror(colourful(input_size)))[0]
    cells = input_size.w // 4
    for cell in range(cells):
        np.testing.assert_array_equal(flipped[:, :, 4 * cell], original[:, :, 4 * (cells - 1 - cell)])


@pytest.mark.parametrize("size", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.3, 0.6), (0.81, 0.27)])
def test_one_lit_spot_and_one_keypoint_take_the_same_path(size, at):
    x, y = round(at[0] * size.w), round(at[1] * size.h)
    rows, columns = np.mgrid[: size.h, : size.w]
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    input_size = PUBLISHED_SIZES.place(size).input
    warped = warp(np.repeat(spot[:, :, None], 3, 2).astype(np.uint8), input_size)
    expected = Placement(size, input_size).to_input @ [x, y, 1]
    np.testing.assert_allclose(_brightest(warped), expected, atol=0.1)
    flipped = _brightest(mirror(warped))
    np.testing.assert_allclose(flipped, [input_size.w - 1 - expected[0] - 3, expected[1]], atol=0.1)
    back = Placement(size, input_size).to_image @ [input_size.w - 4 - flipped[0], flipped[1], 1]
    np.testing.assert_allclose(back, [x, y], atol=0.1)


def _brightest(image: np.ndarray) -> list[float]:
    """The centre of the brightness (x, y)."""
    values = image[:, :, 0].astype(float)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    return [(values * columns).sum() / values.sum(), (values * rows).sum() / values.sum()]


# -- decoding ----------------------------------------------------------------------------------------------------------


def with_segment(jpeg: bytes, body: bytes) -> bytes:
    """The JPEG with an APP1 segment after its start."""
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def turned(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF orientation of 6: shown rotated by 90 degrees."""
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    return with_segment(jpeg, b"Exif\0\0" + tiff)


def test_the_orientation_in_exif_is_ignored():
    jpeg = encode(colourful(Size(20, 30)), ".jpg")
    by_default = cv2.imdecode(np.frombuffer(turned(jpeg), np.uint8), cv2.IMREAD_COLOR)
    assert by_default.shape == (30, 20, 3), "the picture does say that it is turned"
    np.testing.assert_array_equal(decode_image(turned(jpeg), "x"), decode_image(jpeg, "x"))


def test_a_grey_picture_becomes_colour():
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    np.testing.assert_array_equal(decode_image(encode(grey), "x"), np.repeat(grey[:, :, None], 3, 2))


def test_a_truncated_jpeg_with_a_thumbnails_end_marker_is_refused():
    jpeg = encode(colourful(Size(90, 120)), ".jpg")
    whole = with_segment(jpeg, b"Exif\0\0" + encode(colourful(Size(8, 8)), ".jpg"))
    assert decode_image(whole, "x").shape == (90, 120, 3)
    cut = whole[: len(whole) * 3 // 4]
    assert b"\xff\xd9" in cut, "the thumbnail's"
    with pytest.raises(DekrError, match=r"cat\.jpg: not an image, or damaged"):
        decode_image(cut, "cat.jpg")


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8", b"\xff\xd8\xff\xd9"])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(DekrError, match=r"cat\.jpg: not an image"):
        decode_image(data, "cat.jpg")


# -- runs --------------------------------------------------------------------------------------------------------------

SIZES = {f"{number:012d}.jpg": size for number, size in zip((30, 7, 911, 4, 55), ONE_OF_EACH, strict=True)}
STEMS = [name[:12] for name in SIZES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set of one picture per input size, in a zip and in a folder; the second one is marked as turned."""
    root = tmp_path_factory.mktemp("coco")
    write_annotation(root, SIZES)
    pictures = {name: encode(colourful(size, size.h), ".jpg") for name, size in SIZES.items()}
    pictures[f"{STEMS[1]}.jpg"] = turned(pictures[f"{STEMS[1]}.jpg"])
    write_pictures(root, pictures)
    write_pictures(root, pictures, as_zip=False)
    return root


def make(root, folder, source="val2017.zip", **options):
    """Run preprocessing into prep and prep_flip below a folder."""
    folders = (folder / "prep", folder / "prep_flip")
    data = load_data_set(root, "val2017")
    return write_tensors(data, root / "images" / source, "val2017", folders, **options)


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """What a run over the zip writes: its folder and its summary."""
    folder = tmp_path_factory.mktemp("made")
    return folder, make(root, folder)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the finished run, for a test to spoil."""
    shutil.copytree(made[0], tmp_path / "copy")
    return tmp_path / "copy"


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed_since(folder, stamps) -> set[str]:
    return {name for name, stamp in stamps_of(folder).items() if stamps.get(name) != stamp}


def stamps_of(folder) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*.npy")}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def test_a_run_writes_both_tensors_of_every_picture_and_nothing_else(root, made):
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == ["prep", "prep_flip"]
    assert set(files_of(folder)) == {f"{name}/{stem}.npy" for name in ("prep", "prep_flip") for stem in STEMS}
    for stem in STEMS:
        image = decode_image((root / "images" / "val2017" / f"{stem}.jpg").read_bytes(), stem)
        for name, expected in zip(("prep", "prep_flip"), reference_tensors(image), strict=True):
            np.testing.assert_array_equal(np.load(folder / name / f"{stem}.npy"), expected, err_msg=f"{name}/{stem}")


def test_the_summary_counts_pictures_input_size_and_bytes(made):
    folder, summary = made
    assert (summary.pictures, summary.skipped) == (5, 0)
    assert summary.input_sizes == Counter(PUBLISHED_SIZES.place(size).input for size in ONE_OF_EACH)
    assert summary.written == sum(len(data) for data in files_of(folder).values())
    assert input_size_table(summary.input_sizes) == "512x768: 1, 512x512: 1, 768x512: 1, 512x1024: 1, 1024x512: 1"


def test_zip_and_folder_and_any_number_of_workers_give_the_same_files(root, made, tmp_path, monkeypatch):
    monkeypatch.setattr("dekr_infer.pose.preprocess.CHUNK", 2)
    make(root, tmp_path, "val2017", workers=2)
    assert files_of(tmp_path) == files_of(made[0])


def test_a_second_run_does_nothing_and_starts_no_worker(root, copy, monkeypatch):
    stamps = stamps_of(copy)
    monkeypatch.setattr("dekr_infer.pose.preprocess.ProcessPoolExecutor", None)
    summary = make(root, copy)
    assert (summary.pictures, summary.skipped, summary.written) == (5, 5, 0)
    assert changed_since(copy, stamps) == set()


def test_only_what_is_missing_cut_short_or_of_another_shape_is_made_again(root, made, copy):
    (copy / "prep" / f"{STEMS[0]}.npy").unlink()
    (copy / "prep_flip" / f"{STEMS[2]}.npy").unlink()
    os.truncate(copy / "prep" / f"{STEMS[3]}.npy", 1000)
    other = np.load(copy / "prep" / f"{STEMS[4]}.npy").transpose(0, 1, 3, 2)
    np.save(copy / "prep" / f"{STEMS[4]}.npy", np.ascontiguousarray(other))
    stamps = stamps_of(copy)
    summary = make(root, copy)
    assert (summary.pictures, summary.skipped) == (5, 1)
    again = {f"{name}/{STEMS[n]}.npy" for n in (0, 2, 3, 4) for name in ("prep", "prep_flip")}
    assert changed_since(copy, stamps) == again
    assert files_of(copy) == files_of(made[0])


def test_overwrite_makes_all_of_them_again(root, made, copy):
    stamps = stamps_of(copy)
    assert make(root, copy, overwrite=True).skipped == 0
    assert len(changed_since(copy, stamps)) == 10
    assert files_of(copy) == files_of(made[0])


def test_limit_takes_the_first_pictures_of_the_annotation(root, tmp_path):
    steps = []
    summary = make(root, tmp_path, limit=2, advance=steps.append)
    assert {path.name for path in (tmp_path / "prep").iterdir()} == {f"{stem}.npy" for stem in STEMS[:2]}
    assert summary.pictures == 2 and sum(summary.input_sizes.values()) == 2 and sum(steps) == 2


def test_foreign_tensors_are_refused_and_those_beyond_the_limit_are_not_foreign(root, copy):
    assert make(root, copy, limit=1).skipped == 1
    (copy / "prep_flip" / "000000000001.npy").touch()
    with pytest.raises(DekrError, match=r"prep_flip: 1 \.npy files do not belong to .*, the first is 000000000001"):
        make(root, copy)


def test_a_second_run_on_either_folder_at_the_same_time_is_refused(root, copy):
    for name in ("prep", "prep_flip"):
        with (
            tensors.exclusive(copy / name),
            pytest.raises(DekrError, match=f"{name}: another run is writing here"),
        ):
            make(root, copy)
    make(root, copy)


def broken_set(root, tmp_path, change) -> None:
    """A copy of the data set in a folder, with a change made to it."""
    shutil.copytree(root, tmp_path / "coco")
    (tmp_path / "coco" / "images" / "val2017.zip").unlink()
    change(tmp_path / "coco")


def test_missing_pictures_stop_the_run_before_anything_is_written(root, tmp_path):
    broken_set(root, tmp_path, lambda coco: (coco / "images" / "val2017" / f"{STEMS[3]}.jpg").unlink())
    with pytest.raises(DekrError, match=rf"1 of 5 images are missing, the first is {STEMS[3]}"):
        make(tmp_path / "coco", tmp_path, "val2017")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


def test_a_damaged_picture_is_named_and_only_finished_tensors_stay(root, made, tmp_path):
    broken_set(root, tmp_path, lambda coco: os.truncate(coco / "images" / "val2017" / f"{STEMS[3]}.jpg", 900))
    with pytest.raises(DekrError, match=rf"{STEMS[3]}\.jpg: not an image, or damaged"):
        make(tmp_path / "coco", tmp_path, "val2017")
    shutil.rmtree(tmp_path / "coco")
    finished = files_of(tmp_path)
    assert finished and finished.items() <= files_of(made[0]).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prep", "prep_flip"]


def test_a_picture_of_another_size_than_annotated_is_named(root, tmp_path):
    def change(coco):
        path = coco / "annotations" / "person_keypoints_val2017.json"
        content = json.loads(path.read_text())
        content["images"][0]["width"] += 1
        path.write_text(json.dumps(content))

    broken_set(root, tmp_path, change)
    with pytest.raises(DekrError, match=rf"{STEMS[0]}\.jpg: is 333x481 pixels, the annotation says 333x482"):
        make(tmp_path / "coco", tmp_path, "val2017", limit=1)
