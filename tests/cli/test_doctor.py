"""scripts/doctor.sh: what is good, what is bad and what to do, on hosts with and without the tools."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dekr_infer.cli import doctor
from dekr_infer.cli.doctor import needed_bytes
from dekr_infer.data.coco import load_data_set
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size, cells
from dekr_infer.storage import npy as tensors
from dekr_infer.storage.atomic import folder_lock
from tests.support.ascend_host import FAKES, Host, refused


def lines(text: str) -> dict[str, str]:
    """The last line of each name: its word, then what was found."""
    return {line[4:16].strip(): line[:4].strip() + " " + line[17:] for line in text.splitlines()}


def fill(host: Host) -> None:
    """Annotation, images and weights where they are looked for."""
    images = [{"id": 1, "file_name": "a.jpg", "height": 400, "width": 600}]
    for file, text in (
        ("data/coco/annotations/person_keypoints_val2017.json", json.dumps({"images": images})),
        ("data/coco/images/val2017.zip", "zip"),
        ("models/pose_dekr_hrnetw32_coco.pth", "weights"),
        ("models/final_rescore_coco_kpt.pth", "weights"),
    ):
        path = host.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def host(host: Host) -> Host:
    """The host, with everything that the doctor looks for."""
    toolkit = host.home / "Ascend" / "ascend-toolkit"
    (toolkit / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=6.0.RC1\n")
    for package in ("ais_bench", "aclruntime"):
        made = host.home / "wheels" / f"{package}-0.0.2.dist-info"
        made.mkdir(parents=True)
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.2\n")
    (host.home / "wheels" / "aclruntime.py").touch()
    host.env["PYTHONPATH"] = f"{FAKES}:{host.home / 'wheels'}"
    fill(host)
    return host


def test_a_host_with_all_it_needs(host):
    done = host.run("doctor.sh")
    found = lines(done.stdout)
    assert found["driver"] == "ok 22.0.4" and found["chip"] == "ok Ascend310P3"
    assert found["CANN"].endswith("opp 6.0.RC1") or found["CANN"].endswith("ascend-toolkit 6.0.RC1")
    assert found["atc"].startswith("ok /") and found["atc"].endswith("bin/atc, of CANN 6.0.RC1")
    assert found["images"].endswith(f"val2017.zip: sha256 {hashlib.sha256(b'zip').hexdigest()[:16]}")
    assert "wheels" not in found and found["ais_bench"] == found["aclruntime"] == "ok 0.0.2 for python3"
    assert found["packages"] == "ok all present" and "1 images, sha256 " in found["annotation"]
    assert found["disk"].startswith("ok ") and found["weights"].startswith("ok models/final")
    assert found["model"] == "- models/dekr_bs1.om: not made yet"
    bad = [name for name, text in found.items() if text.startswith("BAD")]
    assert bad in ([], ["memory"])  # memory is the machine's own
    assert done.returncode == len(bad)


def test_a_host_with_nothing(tmp_path):
    done = Host(tmp_path).run("doctor.sh")
    refused(done, 1, "marked BAD")
    found = lines(done.stdout)
    remedies = {
        "driver": "install or restart",
        "chip": "npu-smi: not found",
        "CANN": "ASCEND_TOOLKIT_HOME",
        "atc": "CANN toolkit",
        "ais_bench": "install its wheel",
        "aclruntime": "AIS_BENCH_PYTHON",
        "annotation": "README.md",
        "weights": "README.md",
    }
    for name, part in remedies.items():
        assert found[name].startswith("BAD ") and part in found[name], found[name]


@pytest.mark.parametrize("script", ["exit 3", "return 1", "if ("])
def test_a_toolkit_that_does_not_load(host, script):
    path = host.home / "Ascend/ascend-toolkit/set_env.sh"
    path.write_text(f"{script}\n")
    done = host.run("doctor.sh")
    refused(done, 1, "marked BAD")
    found = lines(done.stdout)
    assert found["atc"] == f"BAD not found after loading {path}; repair this toolkit"
    assert found["CANN"].startswith(f"BAD {path}: sets nothing; ")


def test_without_an_npu_its_tools_are_not_asked_for(tmp_path):
    host = Host(tmp_path)
    fill(host)
    found = lines(host.run("doctor.sh", "--backend", "onnx").stdout)
    assert not {"driver", "chip", "CANN", "atc", "ais_bench"} & set(found) and found["images"].startswith("ok")


def test_the_disk_space_is_what_the_files_take(tmp_path):
    """One image of each orientation, written as the chain writes them."""
    written = 0
    with folder_lock(tmp_path / "made"):
        for input_size in (Size(512, 768), Size(1024, 512)):
            for channels, size in ((3, input_size), (18, cells(input_size)), (34, cells(input_size))):
                array = np.zeros((1, channels, *size), np.float32)
                written += 2 * tensors.write(tmp_path / "made", "x.npy", array).size
    assert needed_bytes([Size(400, 600), Size(640, 340)]) == written


def test_too_little_disk(host):
    annotation = host.folder / "data/coco/annotations/person_keypoints_val2017.json"
    image = {"height": 400, "width": 600}
    annotation.write_text(
        json.dumps({"images": [image | {"id": n, "file_name": f"{n}.jpg"} for n in range(200_000)]})
    )  # 2 TB
    assert lines(host.run("doctor.sh").stdout)["disk"].startswith("BAD ")


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [',
        '{"images": []}',
        '{"images": 5}',
        "[" * 100_000,
        *(
            f'{{"images": [{{"id": 1, "file_name": "a.jpg", "height": {side}, "width": 600}}]}}'
            for side in ("0", "-5", "1e999", "NaN", "1" + "0" * 400)
        ),
    ],
)
def test_a_damaged_annotation(tmp_path, text):
    host = Host(tmp_path)
    fill(host)
    (host.folder / "data/coco/annotations/person_keypoints_val2017.json").write_text(text)
    done = host.run("doctor.sh", "--backend", "onnx")
    refused(done, 1, "marked BAD")
    assert "BAD data/coco/annotations/person_keypoints_val2017.json: " in "BAD " + lines(done.stdout)["annotation"][4:]
    assert lines(done.stdout)["annotation"].startswith("BAD ")


def test_images_in_a_folder(tmp_path):
    host = Host(tmp_path)
    fill(host)
    (host.folder / "data/coco/images/val2017.zip").rename(host.folder / "data/coco/images/val2017")
    doctor = ("doctor.sh", "--backend", "onnx")
    assert lines(host.run(*doctor).stdout)["images"].startswith("BAD data/coco/images/val2017.zip: not found")
    (host.folder / "data/coco/images/val2017").unlink()
    (host.folder / "data/coco/images/val2017").mkdir()
    assert lines(host.run(*doctor).stdout)["images"] == "ok data/coco/images/val2017"


def test_a_wheel_that_cannot_be_imported(host):
    (host.home / "wheels" / "aclruntime.py").write_text("raise ImportError('libascendcl.so: cannot open')")
    found = lines(host.run("doctor.sh").stdout)
    wanted = "BAD cannot be imported by python3: ImportError: libascendcl.so: cannot open; "
    assert found["aclruntime"].startswith(wanted) and "AIS_BENCH_PYTHON" in found["aclruntime"]
    assert found["ais_bench"] == "ok 0.0.2 for python3"


def test_wheels_of_two_versions_are_a_warning(host):
    metadata = host.home / "wheels" / "aclruntime-0.0.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("0.0.2", "0.0.1"))
    found = lines(host.run("doctor.sh").stdout)
    assert found["aclruntime"] == "ok 0.0.1 for python3"
    assert found["wheels"].startswith("- warning: ais_bench 0.0.2 with aclruntime 0.0.1; ")


def test_the_version_of_newer_toolkits_and_of_none(host):
    toolkit = host.home / "Ascend/ascend-toolkit"
    (toolkit / "x86_64-linux").mkdir()
    (toolkit / "ascend_toolkit_install.info").rename(toolkit / "x86_64-linux" / "ascend_toolkit_install.info")
    assert lines(host.run("doctor.sh").stdout)["atc"].endswith(", of CANN 6.0.RC1")
    (toolkit / "x86_64-linux" / "ascend_toolkit_install.info").unlink()
    assert lines(host.run("doctor.sh").stdout)["atc"].endswith(", of CANN (version unknown)")


def test_weights_that_cannot_be_read_are_named_in_place_of_their_hash(tmp_path, monkeypatch):
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "final_rescore_coco_kpt.pth").touch()
    monkeypatch.setattr(Path, "open", refuse)
    assert any("cannot be read (Permission denied)" in check.found for check in doctor.models(tmp_path))


def test_a_wrong_annotation_is_refused_as_the_commands_refuse_it(host):
    annotation = host.folder / "data/coco/annotations/person_keypoints_val2017.json"
    content = json.loads(annotation.read_text())
    annotation.write_text(json.dumps(content | {"images": content["images"] * 2}))
    done = host.run("doctor.sh")
    refused(done, 1, "marked BAD")
    with pytest.raises(DekrError) as error:
        load_data_set(host.folder / "data/coco", "val2017")
    assert lines(done.stdout)["annotation"].removeprefix("BAD ") in str(error.value)


def test_a_package_of_another_distribution_is_accepted(monkeypatch):
    monkeypatch.setattr(doctor, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert doctor.Check(True, "packages", "all present; onnxruntime is of onnxruntime-gpu") in doctor.python()


def test_a_missing_package_is_named_as_pip_names_it(monkeypatch):
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "cv2" else real(name))
    (found,) = (check for check in doctor.python() if check.name == "packages")
    assert not found.good and found.found == "missing: opencv-python-headless" and "setup_venv.sh" in found.remedy


@pytest.mark.parametrize("name", ["PYTHONHOME", "PYTHONPATH"])
def test_what_a_toolkit_sets_for_its_own_python_does_not_reach_ours(host, name):
    folder = host.home / "foreign"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise ImportError('of the toolkit')")
    script = host.home / "Ascend/ascend-toolkit/set_env.sh"
    script.write_text(script.read_text() + f'export {name}="{folder}${{{name}:+:${name}}}"\n')
    found = lines(host.run("doctor.sh").stdout)
    assert found["packages"] == "ok all present" and "1 images" in found["annotation"]
