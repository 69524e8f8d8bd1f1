"""Images of a data set from zip or folder, wherever they lie in it: docs/reference.md [1] to [4]."""

import os
import tracemalloc
import unicodedata
import zipfile
import zlib

import pytest

from dekr_infer.data.sources import LARGEST_FILE, ImageFiles, image_source
from dekr_infer.errors import ConfigError, DekrError
from dekr_infer.geometry import Size
from tests.support.coco_files import write_images
from tests.support.images import colourful, encode

SIZES = {"000000000030.jpg": Size(4, 5), "000000000007.jpg": Size(6, 4), "b.png": Size(3, 9), "a.jpg": Size(8, 8)}


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    folder = write_images(tmp_path, {"a.jpg": b"x"}, as_zip=False)
    os.truncate(folder / "a.jpg", LARGEST_FILE + 1)
    with pytest.raises(DekrError, match=r"a\.jpg: announces 268,435,457 bytes, which no image has"):
        ImageFiles(folder).read("a.jpg")


@pytest.fixture
def pictures() -> dict[str, bytes]:
    return {name: encode(colourful(size, seed), name[-4:]) for seed, (name, size) in enumerate(SIZES.items())}


def test_zip_and_folder_give_the_same_bytes(tmp_path, pictures):
    archive = ImageFiles(write_images(tmp_path, pictures))
    folder = ImageFiles(write_images(tmp_path, pictures, as_zip=False))
    for files in (archive, folder):
        files.check_present(list(pictures))
        assert [files.read(name) for name in pictures] == list(pictures.values())


@pytest.mark.parametrize("as_zip", [True, False])
def test_missing_images_are_counted_and_the_first_is_named(tmp_path, pictures, as_zip):
    source = write_images(tmp_path, {"a.jpg": pictures["a.jpg"], "b.png": pictures["b.png"]}, as_zip)
    files = ImageFiles(source)
    with pytest.raises(DekrError, match=r"2 of 4 images are missing, the first is 000000000030\.jpg"):
        files.check_present(list(pictures))
    with pytest.raises(DekrError, match=r"000000000007\.jpg"):
        files.read("000000000007.jpg")


# -- other paths -------------------------------------------------------------------------------------------------------

MOVES = {
    "flat": lambda name: name,
    "nested": lambda name: f"download/images/val2017/{name}",
    "dot": lambda name: f"./val2017/{name}",
    "backslash": lambda name: f"val2017\\{name}",
    "case": lambda name: f"VAL2017/{name.upper()}",
    "other split": lambda name: f"train2017/{name}",
}


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("move", MOVES)
def test_images_under_other_paths_of_the_zip_are_taken_and_one_line_says_so(tmp_path, pictures, move, caplog):
    moved = {MOVES[move](name): data for name, data in pictures.items()}
    files = ImageFiles(write_zip(tmp_path / "val2017.zip", {**moved, "__MACOSX/._a.jpg": b"mac"}))
    assert files.check_present(list(pictures)) == set()
    assert [files.read(name) for name in pictures] == list(pictures.values())
    (record,) = caplog.records
    name = next(iter(pictures))
    said = record.getMessage()
    assert f"4 of 4 images are under other paths and taken from there, the first is {MOVES[move](name)} " in said
    assert said.endswith(f"instead of val2017/{name}")


def test_names_in_another_encoding_or_normal_form_are_found(tmp_path, pictures):
    data = pictures["a.jpg"]
    plain = write_zip(
        tmp_path / "val2017.zip", {"val2017/xyzz.jpg": data}
    )  # its name is replaced by UTF-8 without a flag
    plain.write_bytes(plain.read_bytes().replace(b"xyzz.jpg", "ä€.jpg".encode()[:8].ljust(8, b"g")[:8]))
    name = "ä€.jpg".encode()[:8].ljust(8, b"g").decode("utf-8", "ignore")
    decomposed = unicodedata.normalize("NFD", "ä.jpg")
    folder = write_images(tmp_path, {decomposed: data}, as_zip=False)
    assert ImageFiles(folder).read("ä.jpg") == data
    assert ImageFiles(plain).read(name) == data


def test_folders_tell_equal_names_apart_and_otherwise_nothing_is_taken(tmp_path, pictures):
    members = {"set/cam1/a.jpg": pictures["a.jpg"], "set/cam2/a.jpg": pictures["b.png"], "x/cam1/c.jpg": b"c"}
    files = ImageFiles(write_zip(tmp_path / "val2017.zip", members))
    assert files.read("cam2/a.jpg") == pictures["b.png"]
    with pytest.raises(
        DekrError, match=r"a\.jpg: val2017/a\.jpg is not there, and 2 files could be meant, such as set/cam1"
    ):
        files.read("a.jpg")
    with pytest.raises(DekrError, match="2 files could be meant"):
        files.check_present(["cam1/a.jpg", "a.jpg"])


def test_the_usual_path_comes_first_and_without_a_word(tmp_path, pictures, caplog):
    members = {"other/a.jpg": b"other", "val2017/a.jpg": pictures["a.jpg"]}
    files = ImageFiles(write_zip(tmp_path / "val2017.zip", members))
    assert files.check_present(["a.jpg"]) == set() and files.read("a.jpg") == pictures["a.jpg"]
    assert not caplog.records


@pytest.mark.parametrize("as_zip", [True, False])
def test_missing_images_may_be_allowed_but_not_all_of_them(tmp_path, pictures, as_zip):
    files = ImageFiles(write_images(tmp_path, {"a.jpg": pictures["a.jpg"]}, as_zip))
    assert files.check_present(["a.jpg", "b.png"], allow_missing=True) == {"b.png"}
    with pytest.raises(
        DekrError, match=r"1 of 2 images .* looked for \S*b\.png, found 1 files, .*or add --allow_missing"
    ):
        files.check_present(["a.jpg", "b.png"], allow_missing=False)
    with pytest.raises(DekrError, match=r"1 of 1 images are missing"):
        files.check_present(["b.png"], allow_missing=True)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_unpacking_cannot_be_bounded_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "val2017.zip", "w", method) as archive:
        archive.writestr("val2017/a.jpg", bytes(1 << 20))
    with pytest.raises(DekrError, match=r"a\.jpg: is packed by another method than deflate; pack the zip again"):
        ImageFiles(tmp_path / "val2017.zip").read("a.jpg")


def test_a_member_that_unpacks_to_more_than_it_announces_takes_no_more_memory_than_that(tmp_path):
    path = write_zip(tmp_path / "val2017.zip", {"val2017/a.jpg": b""})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("val2017/a.jpg", bytes(200_000_000))
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 16 : start + 20] = zlib.crc32(bytes(1000)).to_bytes(4, "little")
    data[start + 24 : start + 28] = (1000).to_bytes(4, "little")
    data[14:18] = zlib.crc32(bytes(1000)).to_bytes(4, "little")
    path.write_bytes(data)
    files = ImageFiles(path)
    tracemalloc.start()
    try:
        assert files.read("a.jpg") == bytes(1000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_damage_in_the_zip_is_noticed_by_its_checksum(tmp_path, pictures):
    source = write_images(tmp_path, pictures)
    data = bytearray(source.read_bytes())
    start = bytes(data).index(pictures["b.png"])
    data[start + 20] ^= 1
    source.write_bytes(data)
    files = ImageFiles(source)
    assert files.read("a.jpg") == pictures["a.jpg"]
    with pytest.raises(DekrError, match=r"b\.png: .*CRC"):
        files.read("b.png")


def test_a_zip_cut_short_is_named(tmp_path, pictures):
    source = write_images(tmp_path, pictures)
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(DekrError, match=r"val2017\.zip: not a zip file, or cut short"):
        ImageFiles(source)


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
