"""Where network outputs come from: what the records say, and what was replaced since."""

import json
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.backends.folder_runner import list_tensors, record_outputs, summary_path
from dekr_infer.data.sources import ImageFiles
from dekr_infer.errors import DekrError
from dekr_infer.evaluation.provenance import origin_warnings, origins, require_one_run
from dekr_infer.storage.atomic import folder_lock
from dekr_infer.storage.run_record import Entry, Head, RunRecord, mark_file, read_record, record_path

STEMS = ("a", "b")
NAMES = {stem: f"{stem}.jpg" for stem in STEMS}
RUN_AGAIN = "run the network again on all tensors"


def write_images(folder: Path, text: str = "image") -> ImageFiles:
    (folder / "val2017").mkdir(exist_ok=True)
    for stem in STEMS:
        (folder / "val2017" / NAMES[stem]).write_text(f"{text} {stem}")
    return ImageFiles(folder / "val2017")


def write_tensors(folder: Path, files: ImageFiles, which: str, seed: float = 0, **about: object) -> None:
    folder.mkdir(exist_ok=True)
    head = Head("tensors", {"pass": which, "moved_pixels": False}, {"annotations": "x", "opencv": ["4.12.0"]} | about)
    with RunRecord(record_path(folder), head) as record:
        for number, stem in enumerate(STEMS):
            np.save(folder / f"{stem}.npy", np.full((1, 3, 4, 8), number + seed + 9 * (which == "flipped"), np.float32))
            marks = {f"{stem}.npy": mark_file(folder / f"{stem}.npy")}
            record.add(Entry(stem, {"image": files.fingerprint(NAMES[stem])}, marks))


def run(tensors: Path, folder: Path, graph: str = "g", stems: tuple[str, ...] = STEMS) -> None:
    """As a runner does: outputs that depend on tensor and graph, then the record."""
    folder.mkdir(exist_ok=True)
    files = [file for file in list_tensors([tensors]) if file.stem in stems]
    for file in files:
        for index in (0, 1):
            np.save(folder / f"{file.stem}_{index}.npy", np.load(file) + index + len(graph) * 100)
    record_outputs(folder, files, graph, {"checkpoint": "c"})


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    return write_images(tmp_path)


@pytest.fixture
def folders(tmp_path: Path, images: ImageFiles) -> list[Path]:
    """Both output folders of a whole run, with their tensors next to them."""
    for name, which in (("", "original"), ("_flip", "flipped")):
        write_tensors(tmp_path / f"prep_data{name}", images, which)
        run(tmp_path / f"prep_data{name}", tmp_path / f"out{name}")
    return [tmp_path / "out", tmp_path / "out_flip"]


def warned(folders: list[Path], annotations: str = "x") -> dict[str, str]:
    return origin_warnings(origins(folders), annotations)


# --- one run


def test_outputs_of_one_run_are_taken_with_and_without_images(folders, images):
    require_one_run(folders, NAMES)
    require_one_run(folders, NAMES, images)
    require_one_run(folders[:1], {"b": "b.jpg"}, images)


def test_a_killed_run_of_another_graph_is_noticed(folders, tmp_path):
    before = [(path, path.read_bytes()) for path in folders[1].glob("b_*")]
    run(tmp_path / "prep_data_flip", folders[1], "other")
    contents = read_record(record_path(folders[1]))
    assert contents is not None
    with RunRecord(record_path(folders[1]), contents.head) as record:
        record.drop(["b.npy"])
    with record:
        for path, data in before:
            path.write_bytes(data)
    with pytest.raises(DekrError, match=rf"out_flip/b_0\.npy: is of another run than the outputs in .*; {RUN_AGAIN}"):
        require_one_run(folders, NAMES)
    require_one_run(folders, {"a": "a.jpg"})


def test_an_output_that_another_program_wrote_is_noticed(folders):
    np.save(folders[0] / "a_1.npy", np.zeros((1, 3, 4, 8), np.float32))
    with pytest.raises(DekrError, match=r"out/a_0\.npy: is of another run"):
        require_one_run(folders, NAMES)


def test_outputs_that_are_all_from_elsewhere_are_of_unknown_provenance(folders, images):
    for path in folders[0].iterdir():
        np.save(path, np.zeros((1, 3, 4, 8), np.float32))
    require_one_run(folders, NAMES, images)
    assert origins(folders)[0]["graph"] is None and origins(folders)[1]["graph"] == "g"


def test_a_run_under_way_is_noticed(folders):
    with (
        folder_lock(folders[1]),
        pytest.raises(DekrError, match="out_flip: another run is writing here; wait for it"),
    ):
        require_one_run(folders, NAMES)
    require_one_run(folders, NAMES)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_replaced_tensor_is_noticed(folders, tmp_path, images, recorded):
    if recorded:
        write_tensors(tmp_path / "prep_data", images, "original", 0.5)
    else:
        np.save(tmp_path / "prep_data" / "a.npy", np.ones((1, 3, 4, 8), np.float32))
    with pytest.raises(DekrError, match=rf"prep_data/a\.npy: is not the tensor .*out/a_0\.npy .*{RUN_AGAIN}"):
        require_one_run(folders, NAMES)


def test_tensors_that_are_deleted_or_moved_away_are_not_needed(folders, tmp_path):
    for path in (tmp_path / "prep_data").iterdir():
        path.unlink()
    (tmp_path / "prep_data_flip").rename(tmp_path / "elsewhere")
    record_path(tmp_path / "prep_data_flip").unlink()
    require_one_run(folders, NAMES)


def test_replaced_images_are_noticed_where_they_are_there(folders, tmp_path, images):
    write_images(tmp_path, "other")
    with pytest.raises(DekrError, match=r"out/a_0\.npy: was made of another image of this name; run DEKR_preprocess"):
        require_one_run(folders, NAMES, images)
    (tmp_path / "val2017" / "a.jpg").unlink()
    with pytest.raises(DekrError, match=r"out/b_0\.npy: was made of another image"):
        require_one_run(folders, NAMES, images)
    require_one_run(folders, NAMES)


def test_passes_of_different_images_are_noticed_without_images(folders, tmp_path):
    for name in ("prep_data", "prep_data_flip"):
        write_tensors(tmp_path / name, write_images(tmp_path, "other"), "original", 0.5)
    run(tmp_path / "prep_data", folders[0])
    for name in ("prep_data", "prep_data_flip"):
        record_path(tmp_path / name).unlink()
    with pytest.raises(DekrError, match=r"out_flip/a_0\.npy: was made of another image of this name"):
        require_one_run(folders, NAMES)


def test_outputs_without_a_record_give_no_warning(folders, images):
    for folder in folders:
        record_path(folder).unlink()
    require_one_run(folders, NAMES, images)
    assert warned(folders) == {} and origins(folders)[0]["record"] == {"opencv": [], "moved_pixels": False}


# --- what is known


def test_what_is_known_of_a_run(folders, tmp_path):
    known = origins(folders)
    assert [entry["graph"] for entry in known] == ["g", "g"] and known[0]["checkpoint"] == "c"
    assert [entry["record"]["pass"] for entry in known] == ["original", "flipped"]
    assert [entry["record"]["opencv"] for entry in known] == [["4.12.0"]] * 2
    assert known[0]["tensors"] == str(tmp_path / "prep_data")
    assert warned(folders) == {} and warned([tmp_path / "x", tmp_path / "y"]) == {}


def test_without_a_record_the_summary_names_the_graph(folders):
    record_path(folders[0]).unlink()
    summary_path(folders[0]).write_text(json.dumps({"model_sha256": "s", "versions": {"onnxruntime": "1"}}))
    assert origins(folders)[0]["graph"] == "s" and origins(folders)[0]["versions"] == {"onnxruntime": "1"}


def test_a_fact_of_the_records_that_affects_the_metrics_is_a_warning(folders, tmp_path, images):
    assert set(warned(folders[::-1])) == {"exchanged"}
    assert set(warned([folders[0], folders[0]])) == {"exchanged", "same_tensors"}
    assert set(warned(folders, "others")) == {"annotations"}
    run(tmp_path / "prep_data_flip", folders[1], "other graph")
    assert set(warned(folders)) == {"graphs"}


def test_tensors_with_moved_pixels_are_a_warning(folders, tmp_path, images):
    head = Head("tensors", {"pass": "original", "moved_pixels": True}, {"opencv": ["5.0.0"]})
    with RunRecord(record_path(tmp_path / "prep_data"), head):
        pass
    run(tmp_path / "prep_data", folders[0])
    assert "OpenCV 5.0.0 moves the pixels of warped images" in warned(folders)["opencv"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "loop"])
def test_a_record_that_names_no_possible_folder_gives_no_warning(folders, tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    path = record_path(folders[0])
    head, *lines = path.read_text().splitlines()
    changed = json.loads(head)
    changed["about"]["tensors"] = {str(tmp_path / "loop" / "x") if name == "loop" else name: 7}
    path.write_text("\n".join([json.dumps(changed), *lines, ""]))
    require_one_run(folders, NAMES)
    assert warned(folders) == {}
