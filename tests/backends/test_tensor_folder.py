"""Tensor folders: what a run of preprocessing leaves on the disk, and what a second run does."""

import json
import os
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from dekr_infer.backends.tensor_folder import Converter, input_size_table, write_tensors
from dekr_infer.data.coco import load_data_set
from dekr_infer.data.images import decode_image
from dekr_infer.errors import DekrError
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes
from dekr_infer.pose.preprocess import normalisation
from dekr_infer.storage import npy
from dekr_infer.storage.atomic import folder_lock
from tests.support.coco_files import write_annotation, write_images
from tests.support.images import colourful, encode, turned
from tests.support.reference_tensors import ONE_OF_EACH, reference_tensors

SIZES = {f"{number:012d}.jpg": size for number, size in zip((30, 7, 911, 4, 55), ONE_OF_EACH, strict=True)}
MADE = ["prep", "prep_flip", "prep_flip_record.jsonl", "prep_record.jsonl"]
STEMS = [name[:12] for name in SIZES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set of one image per input size, in a zip and in a folder; the second one is marked as turned."""
    root = tmp_path_factory.mktemp("coco")
    write_annotation(root, SIZES)
    pictures = {name: encode(colourful(size, size.h), ".jpg") for name, size in SIZES.items()}
    pictures[f"{STEMS[1]}.jpg"] = turned(pictures[f"{STEMS[1]}.jpg"])
    write_images(root, pictures)
    write_images(root, pictures, as_zip=False)
    return root


def make(root, folder, source="val2017.zip", **options):
    """Run preprocessing into prep and prep_flip below a folder."""
    folders = (folder / "prep", folder / "prep_flip")
    data = load_data_set(root, "val2017")
    return write_tensors(data, root / "images" / source, folders, **options)


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
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def changed_since(folder, stamps) -> set[str]:
    return {name for name, stamp in stamps_of(folder).items() if stamps.get(name) != stamp}


def stamps_of(folder) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*.npy")}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def test_a_run_writes_both_tensors_of_every_image_and_nothing_else(root, made):
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == [
        "prep",
        "prep_flip",
        "prep_flip_record.jsonl",
        "prep_record.jsonl",
    ]
    assert set(files_of(folder)) == {f"{name}/{stem}.npy" for name in ("prep", "prep_flip") for stem in STEMS}
    for stem in STEMS:
        image = decode_image((root / "images" / "val2017" / f"{stem}.jpg").read_bytes(), stem, SIZES[f"{stem}.jpg"])
        for name, expected in zip(("prep", "prep_flip"), reference_tensors(image), strict=True):
            np.testing.assert_array_equal(np.load(folder / name / f"{stem}.npy"), expected, err_msg=f"{name}/{stem}")


def test_the_summary_counts_images_input_size_and_bytes(made):
    folder, summary = made
    assert (summary.images, summary.done_before) == (5, 0)
    assert summary.input_sizes == Counter(PUBLISHED_SIZES.place(size).input for size in ONE_OF_EACH)
    assert summary.written == sum(len(data) for data in files_of(folder).values())
    assert input_size_table(summary.input_sizes) == "512x768: 1, 512x512: 1, 768x512: 1, 512x1024: 1, 1024x512: 1"


def test_zip_and_folder_and_any_number_of_workers_give_the_same_files(root, made, tmp_path):
    make(root, tmp_path, "val2017", workers=3)
    assert files_of(tmp_path) == files_of(made[0])


def test_8_bit_tensors_hold_what_the_others_are_made_of_in_a_quarter_of_the_bytes(root, made, tmp_path):
    summary = make(root, tmp_path, dtype=npy.UINT8)
    for folder in ("prep", "prep_flip"):
        for stem in STEMS:
            bytes_, floats = (np.load(place / folder / f"{stem}.npy") for place in (tmp_path, made[0]))
            assert bytes_.dtype == np.uint8 and bytes_.shape == floats.shape
            table = normalisation()
            np.testing.assert_array_equal([table[c][bytes_[0, c]] for c in range(3)], floats[0])
    header = 2 * len(STEMS) * npy.USUAL_HEADER
    assert 4 * (summary.written - header) == made[1].written - header


def test_tensors_of_the_other_dtype_are_not_mixed_in(root, copy):
    with pytest.raises(DekrError, match="other settings"):
        make(root, copy, dtype=npy.UINT8)
    make(root, copy, dtype=npy.UINT8, overwrite=True)
    assert {np.load(file).dtype for file in copy.glob("prep*/*.npy")} == {np.dtype(np.uint8)}


def test_a_second_run_converts_nothing(root, copy, monkeypatch):
    stamps = stamps_of(copy)
    monkeypatch.setattr(Converter, "__call__", None)
    summary = make(root, copy)
    assert (summary.images, summary.done_before, summary.written) == (5, 5, 0)
    assert changed_since(copy, stamps) == set()


def test_only_what_is_not_as_it_was_written_is_made_again(root, made, copy):
    (copy / "prep" / f"{STEMS[0]}.npy").unlink()
    (copy / "prep_flip" / f"{STEMS[2]}.npy").unlink()
    os.truncate(copy / "prep" / f"{STEMS[3]}.npy", 1000)
    other = np.load(copy / "prep" / f"{STEMS[4]}.npy").transpose(0, 1, 3, 2)
    np.save(copy / "prep" / f"{STEMS[4]}.npy", np.ascontiguousarray(other))
    stamps = stamps_of(copy)
    summary = make(root, copy)
    assert (summary.images, summary.done_before) == (5, 1)
    again = {f"{name}/{STEMS[n]}.npy" for n in (0, 2, 3, 4) for name in ("prep", "prep_flip")}
    assert changed_since(copy, stamps) == again
    assert files_of(copy) == files_of(made[0])


def test_overwrite_makes_all_of_them_again(root, made, copy):
    stamps = stamps_of(copy)
    assert make(root, copy, overwrite=True).done_before == 0
    assert len(changed_since(copy, stamps)) == 10
    assert files_of(copy) == files_of(made[0])


def test_an_interrupted_run_with_overwrite_leaves_none_of_the_tensors_before(root, copy, monkeypatch):
    convert, started = Converter.__call__, []

    def fail_at_the_third(converter, image):
        started.append(image.stem)
        if len(started) == 3:
            raise KeyboardInterrupt
        return convert(converter, image)

    monkeypatch.setattr(Converter, "__call__", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(root, copy, overwrite=True, dtype=npy.UINT8, workers=1)
    for folder in (copy / "prep", copy / "prep_flip"):
        kept = npy.names_in(folder)
        assert len(kept) < len(STEMS) and all(np.load(folder / name).dtype == np.uint8 for name in kept)


def test_the_opencv_of_tensors_that_are_replaced_is_forgotten(root, copy):
    place = copy / "prep_record.jsonl"
    head, *entries = place.read_text().splitlines()
    for options, known in (({}, ["0.0.1", cv2.__version__]), ({"overwrite": True}, [cv2.__version__])):
        earlier = json.loads(head)
        earlier["about"]["opencv"] = ["0.0.1"]
        place.write_text("\n".join((json.dumps(earlier), *entries, "")))
        make(root, copy, **options)
        assert json.loads(place.read_text().splitlines()[0])["about"]["opencv"] == known


def test_what_cannot_be_removed_is_named(root, copy):
    place = copy / "prep_flip" / f"{STEMS[2]}.npy"
    place.unlink()
    place.mkdir()
    with pytest.raises(DekrError, match=f"prep_flip/{STEMS[2]}.npy: cannot be written"):
        make(root, copy, overwrite=True)


def test_limit_takes_the_first_images_of_the_annotation(root, tmp_path):
    steps = []
    summary = make(root, tmp_path, limit=2, advance=steps.append)
    assert {path.name for path in (tmp_path / "prep").iterdir()} == {f"{stem}.npy" for stem in STEMS[:2]}
    assert summary.images == 2 and sum(summary.input_sizes.values()) == 2 and sum(steps) == 2


def test_foreign_tensors_are_refused_and_those_beyond_the_limit_are_not_foreign(root, copy):
    assert make(root, copy, limit=1).done_before == 1
    (copy / "prep_flip" / "000000000001.npy").touch()
    with pytest.raises(DekrError, match=r"prep_flip: 1 \.npy files do not belong to .*, the first is 000000000001"):
        make(root, copy)


def test_a_second_run_on_either_folder_at_the_same_time_is_refused(root, copy):
    for name in ("prep", "prep_flip"):
        with (
            folder_lock(copy / name),
            pytest.raises(DekrError, match=f"{name}: another run is writing here"),
        ):
            make(root, copy)
    make(root, copy)


def broken_set(root, tmp_path, change) -> None:
    """A copy of the data set in a folder, with a change made to it."""
    shutil.copytree(root, tmp_path / "coco")
    (tmp_path / "coco" / "images" / "val2017.zip").unlink()
    change(tmp_path / "coco")


def test_missing_images_stop_the_run_before_anything_is_written(root, tmp_path):
    broken_set(root, tmp_path, lambda coco: (coco / "images" / "val2017" / f"{STEMS[3]}.jpg").unlink())
    with pytest.raises(DekrError, match=rf"1 of 5 images are missing, the first is {STEMS[3]}"):
        make(tmp_path / "coco", tmp_path, "val2017")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


def test_a_damaged_image_is_named_and_only_finished_tensors_stay(root, made, tmp_path):
    broken_set(root, tmp_path, lambda coco: os.truncate(coco / "images" / "val2017" / f"{STEMS[3]}.jpg", 900))
    with pytest.raises(DekrError, match=rf"{STEMS[3]}\.jpg: a damaged JPEG, pixels are lost"):
        make(tmp_path / "coco", tmp_path, "val2017")
    shutil.rmtree(tmp_path / "coco")
    finished = files_of(tmp_path)
    assert finished and finished.items() <= files_of(made[0]).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "prep",
        "prep_flip",
        "prep_flip_record.jsonl",
        "prep_record.jsonl",
    ]


def test_an_image_of_another_size_than_annotated_is_named(root, tmp_path):
    def change(coco):
        path = coco / "annotations" / "person_keypoints_val2017.json"
        content = json.loads(path.read_text())
        content["images"][0]["width"] += 1
        path.write_text(json.dumps(content))

    broken_set(root, tmp_path, change)
    with pytest.raises(DekrError, match=rf"{STEMS[0]}\.jpg: is 333x481 pixels, the annotation says 333x482"):
        make(tmp_path / "coco", tmp_path, "val2017", limit=1)


def test_tensors_of_other_values_are_made_again_whatever_their_date(root, made, copy):
    path = copy / "prep" / f"{STEMS[1]}.npy"
    before = path.stat()
    np.save(path, np.load(path) + 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert make(root, copy).done_before == 4 and files_of(copy) == files_of(made[0])


def test_tensors_that_no_run_recorded_are_refused_and_stay(root, made, tmp_path):
    shutil.copytree(made[0] / "prep_flip", tmp_path / "prep_flip")
    before = files_of(tmp_path)
    with pytest.raises(DekrError, match=rf"prep_flip: holds 5 unrecorded .* {min(STEMS)}.*--overwrite"):
        make(root, tmp_path)
    assert files_of(tmp_path) == before
    assert make(root, tmp_path, overwrite=True).done_before == 0 and files_of(tmp_path) == files_of(made[0])


@pytest.mark.parametrize("source", ["val2017.zip", "val2017"])
def test_changed_images_are_refused_or_just_their_tensors_replaced(root, copy, tmp_path, source):
    shutil.copytree(root, tmp_path / "coco")
    other = encode(colourful(SIZES[f"{STEMS[2]}.jpg"], 99), ".jpg")
    pictures = {path.name: path.read_bytes() for path in (root / "images" / "val2017").iterdir()}
    write_images(tmp_path / "coco", pictures | {f"{STEMS[2]}.jpg": other}, as_zip=source.endswith("zip"))
    os.utime(tmp_path / "coco" / "images" / source, ns=(1, 1))
    stamps = stamps_of(copy)
    with pytest.raises(DekrError, match=rf"prep: 1 of its tensors were made of other images .* {STEMS[2]}\.npy"):
        make(tmp_path / "coco", copy, source)
    assert changed_since(copy, stamps) == set()
    assert make(tmp_path / "coco", copy, source, replace_changed=True).done_before == 4
    assert changed_since(copy, stamps) == {f"{name}/{STEMS[2]}.npy" for name in ("prep", "prep_flip")}


def test_an_interrupted_run_resumes(root, made, tmp_path, monkeypatch):
    real, begun = Converter.__call__, []

    def interrupted(converter, image):
        begun.append(image)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(converter, image)

    with monkeypatch.context() as patch:
        patch.setattr(Converter, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(root, tmp_path)
    assert len(begun) < 5 and sorted(path.name for path in tmp_path.iterdir()) == MADE
    assert make(root, tmp_path).done_before >= 2 and files_of(tmp_path) == files_of(made[0])


def test_the_threads_of_opencv_are_as_before(root, tmp_path):
    before = cv2.getNumThreads()
    make(root, tmp_path, limit=1)
    assert cv2.getNumThreads() == before


def test_tensors_have_the_input_sizes_that_are_asked_for(root, made, tmp_path, copy):
    exact = InputSizes.of_short_side(512, exact=True)
    summary = make(root, tmp_path, input_sizes=exact)
    placements = {stem: exact.place(size).input for stem, size in zip(STEMS, SIZES.values(), strict=True)}
    for stem, size in placements.items():
        assert np.load(tmp_path / "prep" / f"{stem}.npy").shape == (1, 3, *size)
    table = input_size_table(summary.input_sizes, exact)
    assert table == ", ".join(f"{size}: {count}" for size, count in sorted(Counter(placements.values()).items()))
    with pytest.raises(DekrError, match="made of other images or with other settings"):
        make(root, copy, input_sizes=exact)
