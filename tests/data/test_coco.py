"""The data set: order, names, and pictures from zip or folder: [1] to [4] of the reference's facts."""

import json
import os

import cv2
import numpy as np
import pytest

from dekr_infer.data.coco import LARGEST_FILE, PictureFiles, is_cut_short, load_data_set, picture_source
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import Size
from tests.support.helpers import colourful, encode, with_thumbnail, write_annotation, write_pictures

SIZES = {"000000000030.jpg": Size(4, 5), "000000000007.jpg": Size(6, 4), "b.png": Size(3, 9), "a.jpg": Size(8, 8)}


def refused(root) -> str:
    with pytest.raises(DekrError) as caught:
        load_data_set(root, "val2017")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_come_in_the_order_of_the_annotation_file_people_or_not(tmp_path):
    write_annotation(tmp_path, SIZES)  # ids fall, names are unsorted, nobody in any
    data = load_data_set(tmp_path, "val2017")
    assert [picture.file_name for picture in data.pictures] == list(SIZES)
    assert [picture.size for picture in data.pictures] == list(SIZES.values())


def test_a_tensor_is_named_by_the_stem_and_the_id_is_the_annotations(tmp_path):
    write_annotation(tmp_path, SIZES)
    data = load_data_set(tmp_path, "val2017")
    assert [picture.stem for picture in data.pictures] == ["000000000030", "000000000007", "b", "a"]
    assert [picture.id for picture in data.pictures] == [1000, 999, 998, 997]  # not the number in the name


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    folder = write_pictures(tmp_path, {"a.jpg": b"x"}, as_zip=False)
    os.truncate(folder / "a.jpg", LARGEST_FILE + 1)
    with pytest.raises(DekrError, match=r"a\.jpg: announces 268,435,457 bytes, which no picture has"):
        PictureFiles(folder, "val2017").read("a.jpg")


def test_the_split_names_the_file(tmp_path):
    write_annotation(tmp_path, SIZES, split="train2017")
    assert len(load_data_set(tmp_path, "train2017").pictures) == 4
    assert "person_keypoints_val2017.json: cannot be read" in refused(tmp_path)
    assert "DATASET.ROOT" in refused(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": []}', '{"images": 3}', "3"])
def test_a_file_without_pictures_is_no_annotation(tmp_path, content):
    write_annotation(tmp_path, SIZES).write_text(content)
    assert "lists no images" in refused(tmp_path)


def test_an_annotation_cut_short_is_named(tmp_path):
    path = write_annotation(tmp_path, SIZES)
    path.write_text(path.read_text()[:-20])
    assert f"{path}: not a JSON file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"file_name": None}, "no file name"),
        ({"file_name": "/etc/x.jpg"}, "no file name"),
        ({"file_name": "../x.jpg"}, "no file name"),
        ({"file_name": "x\\y.jpg"}, "no file name"),
        ({"file_name": ""}, "no file name"),
        ({"file_name": "x.v2.jpg"}, "first dot"),
        ({"id": "7"}, "whole-number id"),
        ({"id": True}, "whole-number id"),
        ({"height": 0}, "whole-number height and width from 1"),
        ({"width": -3}, "whole-number height and width from 1"),
        ({"width": 9.5}, "whole-number height and width from 1"),
        ({"width": "wide"}, "whole-number height and width from 1"),
        ({"width": 40_000}, "whole-number height and width from 1 to 32766"),
        ({"id": 2**63}, "whole-number id of at most 64 bits"),
        ({"id": 999}, "same id 999"),
        ({"file_name": "sub/b.jpg"}, "would write the same tensor b.npy"),
        ({"file_name": "000000000007.jpg"}, "would write the same tensor 000000000007.npy"),
    ],
)
def test_a_picture_that_cannot_be_told_apart_or_named_is_refused(tmp_path, change, part):
    path = write_annotation(tmp_path, SIZES)
    content = json.loads(path.read_text())
    content["images"][0].update(change)
    path.write_text(json.dumps(content))
    assert part in refused(tmp_path)


@pytest.mark.parametrize(("number", "part"), [(1000, "a and a have the same id 1000"), (1, "the same tensor a.npy")])
def test_names_of_one_character_are_told_apart_too(tmp_path, number, part):
    """Python keeps one object for all equal texts of one character."""
    path = write_annotation(tmp_path, {"a": Size(4, 5)})
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0] | {"id": number})
    path.write_text(json.dumps(content))
    assert part in refused(tmp_path)


@pytest.mark.parametrize("key", ["file_name", "id", "height", "width"])
def test_a_picture_that_lacks_a_field_is_refused(tmp_path, key):
    path = write_annotation(tmp_path, SIZES)
    content = json.loads(path.read_text())
    del content["images"][2][key]
    path.write_text(json.dumps(content))
    assert "an image lacks" in refused(tmp_path)


@pytest.fixture
def pictures() -> dict[str, bytes]:
    return {name: encode(colourful(size, seed), name[-4:]) for seed, (name, size) in enumerate(SIZES.items())}


def test_zip_and_folder_give_the_same_bytes(tmp_path, pictures):
    archive = PictureFiles(write_pictures(tmp_path, pictures), "val2017")
    folder = PictureFiles(write_pictures(tmp_path, pictures, as_zip=False), "val2017")
    for files in (archive, folder):
        files.check_present(list(pictures))
        assert [files.read(name) for name in pictures] == list(pictures.values())


@pytest.mark.parametrize("as_zip", [True, False])
def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path, pictures, as_zip):
    source = write_pictures(tmp_path, {"a.jpg": pictures["a.jpg"], "b.png": pictures["b.png"]}, as_zip)
    files = PictureFiles(source, "val2017")
    with pytest.raises(DekrError, match=r"2 of 4 pictures are missing, the first is 000000000030\.jpg"):
        files.check_present(list(pictures))
    with pytest.raises(DekrError, match=r"000000000007\.jpg"):
        files.read("000000000007.jpg")


def test_members_lie_below_the_splits_name(tmp_path, pictures):
    source = write_pictures(tmp_path, pictures, split="train2017").rename(tmp_path / "images" / "val2017.zip")
    with pytest.raises(DekrError, match="4 of 4 pictures are missing"):
        PictureFiles(source, "val2017").check_present(list(pictures))


def test_damage_in_the_zip_is_noticed_by_its_checksum(tmp_path, pictures):
    source = write_pictures(tmp_path, pictures)
    data = bytearray(source.read_bytes())
    start = bytes(data).index(pictures["b.png"])
    data[start + 20] ^= 1
    source.write_bytes(data)
    files = PictureFiles(source, "val2017")
    assert files.read("a.jpg") == pictures["a.jpg"]
    with pytest.raises(DekrError, match=r"b\.png: .*CRC"):
        files.read("b.png")


def test_a_zip_cut_short_is_named(tmp_path, pictures):
    source = write_pictures(tmp_path, pictures)
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(DekrError, match=r"val2017\.zip: not a zip file, or cut short"):
        PictureFiles(source, "val2017")


def test_the_source_is_what_is_asked_for_or_what_is_there_the_zip_first(tmp_path, pictures):
    with pytest.raises(DekrError, match=r"val2017\.zip or .*val2017: not there"):
        picture_source(tmp_path, "val2017")
    folder = write_pictures(tmp_path, pictures, as_zip=False)
    assert picture_source(tmp_path, "val2017") == folder
    with pytest.raises(DekrError, match=r"val2017\.zip: not there"):
        picture_source(tmp_path, "val2017", "zip")
    archive = write_pictures(tmp_path, pictures)
    assert picture_source(tmp_path, "val2017") == archive
    assert picture_source(tmp_path, "val2017", "jpg") == folder
    with pytest.raises(ConfigError, match=r"DATASET\.DATA_FORMAT png"):
        picture_source(tmp_path, "val2017", "png")


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
