"""Images of a data set from zip or folder, their headers, their decoding: [1] to [4] of the facts."""

import os

import cv2
import numpy as np
import pytest

from dekr_infer.data.images import is_cut_short
from dekr_infer.data.sources import LARGEST_FILE, ImageFiles, image_source
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import Size
from tests.support.coco_files import write_images
from tests.support.images import colourful, encode, with_thumbnail

SIZES = {"000000000030.jpg": Size(4, 5), "000000000007.jpg": Size(6, 4), "b.png": Size(3, 9), "a.jpg": Size(8, 8)}


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    folder = write_images(tmp_path, {"a.jpg": b"x"}, as_zip=False)
    os.truncate(folder / "a.jpg", LARGEST_FILE + 1)
    with pytest.raises(DekrError, match=r"a\.jpg: announces 268,435,457 bytes, which no image has"):
        ImageFiles(folder, "val2017").read("a.jpg")


@pytest.fixture
def pictures() -> dict[str, bytes]:
    return {name: encode(colourful(size, seed), name[-4:]) for seed, (name, size) in enumerate(SIZES.items())}


def test_zip_and_folder_give_the_same_bytes(tmp_path, pictures):
    archive = ImageFiles(write_images(tmp_path, pictures), "val2017")
    folder = ImageFiles(write_images(tmp_path, pictures, as_zip=False), "val2017")
    for files in (archive, folder):
        files.check_present(list(pictures))
        assert [files.read(name) for name in pictures] == list(pictures.values())


@pytest.mark.parametrize("as_zip", [True, False])
def test_missing_images_are_counted_and_the_first_is_named(tmp_path, pictures, as_zip):
    source = write_images(tmp_path, {"a.jpg": pictures["a.jpg"], "b.png": pictures["b.png"]}, as_zip)
    files = ImageFiles(source, "val2017")
    with pytest.raises(DekrError, match=r"2 of 4 images are missing, the first is 000000000030\.jpg"):
        files.check_present(list(pictures))
    with pytest.raises(DekrError, match=r"000000000007\.jpg"):
        files.read("000000000007.jpg")


def test_members_lie_below_the_splits_name(tmp_path, pictures):
    source = write_images(tmp_path, pictures, split="train2017").rename(tmp_path / "images" / "val2017.zip")
    with pytest.raises(DekrError, match="4 of 4 images are missing"):
        ImageFiles(source, "val2017").check_present(list(pictures))


def test_damage_in_the_zip_is_noticed_by_its_checksum(tmp_path, pictures):
    source = write_images(tmp_path, pictures)
    data = bytearray(source.read_bytes())
    start = bytes(data).index(pictures["b.png"])
    data[start + 20] ^= 1
    source.write_bytes(data)
    files = ImageFiles(source, "val2017")
    assert files.read("a.jpg") == pictures["a.jpg"]
    with pytest.raises(DekrError, match=r"b\.png: .*CRC"):
        files.read("b.png")


def test_a_zip_cut_short_is_named(tmp_path, pictures):
    source = write_images(tmp_path, pictures)
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(DekrError, match=r"val2017\.zip: not a zip file, or cut short"):
        ImageFiles(source, "val2017")


def test_the_source_is_what_is_asked_for_or_what_is_there_the_zip_first(tmp_path, pictures):
    with pytest.raises(DekrError, match=r"val2017\.zip or .*val2017: not there"):
        image_source(tmp_path, "val2017")
    folder = write_images(tmp_path, pictures, as_zip=False)
    assert image_source(tmp_path, "val2017") == folder
    with pytest.raises(DekrError, match=r"val2017\.zip: not there"):
        image_source(tmp_path, "val2017", "zip")
    archive = write_images(tmp_path, pictures)
    assert image_source(tmp_path, "val2017") == archive
    assert image_source(tmp_path, "val2017", "jpg") == folder
    with pytest.raises(ConfigError, match=r"DATASET\.DATA_FORMAT png"):
        image_source(tmp_path, "val2017", "png")


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_jpeg_cut_short_is_noticed_in_spite_of_its_thumbnails_end_marker(share, progressive):
    image = colourful(Size(90, 120)) // 2 + np.random.default_rng(0).integers(0, 99, (90, 120, 3), np.uint8)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])
    for whole in (encoded.tobytes(), with_thumbnail(encoded.tobytes())):
        assert not is_cut_short(whole)
        assert not is_cut_short(whole + b"padding after the end")
        assert is_cut_short(whole[: int(len(whole) * share)] if share > 0.01 else whole[:3])


def test_what_is_no_jpeg_is_never_called_cut_short():
    assert not is_cut_short(encode(colourful(Size(9, 8)), ".png")[:30])
    assert not is_cut_short(b"")
