"""The patch, its set-up script, and `--upstream`; with a stand-in for the checkout where the real one is not needed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnx
import pytest
import torch

from dekr_infer.cli import check_upstream, random_checkpoint
from dekr_infer.cli import export as export_command
from dekr_infer.config.load import fill
from dekr_infer.config.schema import DEFAULTS
from dekr_infer.errors import ConfigError
from dekr_infer.model.upstream import EXPERIMENT
from tests.support.commands import assert_refused, run_command
from tests.support.tiny_models import PAIRS

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = ROOT / "DEKR"
COMMIT = "7a303139e92bdf3eab8d899415ccac37374285a4"
needs_checkout = pytest.mark.skipif(
    not (CHECKOUT / "lib/models/deform.py").is_file(), reason="no DEKR/ here; make it with scripts/setup_upstream.sh"
)
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")

CONFIG = """
from yacs.config import CfgNode
from dekr_infer.config.schema import DEFAULTS
cfg = CfgNode(DEFAULTS)
cfg.MODEL.SPEC = CfgNode(DEFAULTS["MODEL"]["SPEC"], new_allowed=True)
"""
MODEL = """
from dekr_infer.model.head import DekrNet
def get_pose_net(cfg, is_train):
    return DekrNet(cfg.MODEL.SPEC)
"""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A folder that looks like a patched checkout and builds our network from its own configuration tree."""
    folder = tmp_path / "DEKR"
    files = {
        "config/__init__.py": CONFIG,
        "models/__init__.py": "import models.hrnet_dekr",
        "models/hrnet_dekr.py": MODEL,
        "models/deform.py": "",
    }
    for name, text in files.items():
        (folder / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).write_text(text)
    experiment = folder / "experiments/coco/w32/w32_4x_reg03_bs10_512_adam_lr1e-3_coco_x140.yaml"
    experiment.parent.mkdir(parents=True)
    shutil.copy(ROOT / "dekr_infer/config/dekr_w32_coco.yaml", experiment)
    return folder


def test_patch_has_no_context_lines_and_few_deletions():
    lines = (ROOT / "DEKR.patch").read_text().splitlines()
    kinds = [line[:1] for line in lines if not line.startswith(("diff ", "--- ", "+++ ", "@@ ", "new file"))]
    assert set(kinds) == {"+", "-"}
    assert kinds.count("-") <= 60
    assert all(line.endswith("@@") for line in lines if line.startswith("@@ ")), "hunk heads quote nothing"


def test_network_of_the_checkout_is_exported_from_its_own_configuration(stand_in, tiny, tmp_path):
    """In a process of its own, because the checkout's modules are called `config` and `models`."""
    graph = tmp_path / "upstream.onnx"
    words = ("--upstream", stand_in, "--output", graph, "--skip_check", "TEST.MODEL_FILE", tiny.checkpoint, *PAIRS)
    done = subprocess.run(
        [sys.executable, ROOT / "DEKR_pth2onnx.py", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs = onnx.load(tiny.graph), onnx.load(graph)
    assert ours.graph == theirs.graph


def test_folder_that_is_no_checkout_is_refused(tmp_path):
    assert_refused(run_command(export_command.main, "--upstream", tmp_path), 1, str(tmp_path), "setup_upstream.sh")


def test_checkout_without_the_patch_is_refused(stand_in):
    (stand_in / "lib/models/deform.py").unlink()
    assert_refused(run_command(export_command.main, "--upstream", stand_in), 1, "DEKR.patch is not applied")


def test_configuration_that_the_checkout_cannot_build_is_one_line(stand_in, tmp_path):
    (stand_in / "lib/models/hrnet_dekr.py").write_text(
        "def get_pose_net(cfg, is_train):\n    return cfg.MODEL.SPEC.NECK"
    )
    words = ("--upstream", stand_in, "TEST.MODEL_FILE", "x.pth")
    done = subprocess.run(
        [sys.executable, ROOT / "DEKR_pth2onnx.py", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the checkout's hrnet_dekr cannot be built")
    assert done.stderr.count("\n") == 1


def test_keys_that_only_the_checkout_knows_are_taken_below_its_open_section(tmp_path):
    from yacs.config import CfgNode

    tree = CfgNode(DEFAULTS)
    tree.MODEL.SPEC = CfgNode(new_allowed=True)
    file = tmp_path / "new.yaml"
    file.write_text("MODEL:\n  SPEC:\n    NECK:\n      WIDTH: 7\n")
    fill(tree, file, [])
    assert tree.MODEL.SPEC.NECK.WIDTH == 7
    file.write_text("MODEL:\n  NECK: 7\n")
    with pytest.raises(ConfigError, match=r"unknown key MODEL\.NECK"):
        fill(tree, file, [])


def set_up(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script, so that DEKR/ is made below `root`."""
    (root / "scripts").mkdir(exist_ok=True)
    for script in ("setup_upstream.sh", "common.sh"):
        shutil.copy(ROOT / "scripts" / script, root / "scripts")
    shutil.copy(ROOT / "DEKR.patch", root)
    return subprocess.run(["bash", root / "scripts/setup_upstream.sh", *words], capture_output=True, text=True)


@needs_git
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--from", "/nowhere"], 1, "/nowhere: no such folder"),
        (["--from"], 2, "--from needs the folder"),
        (["--form", "x"], 2, "unknown word --form"),
    ],
)
def test_set_up_with_wrong_words_is_one_line(tmp_path, words, code, message):
    done = set_up(tmp_path, *words)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "DEKR").exists()


@needs_git
def test_clone_without_the_commit_is_refused_and_leaves_nothing(tmp_path):
    other = tmp_path / "other clone"
    subprocess.run(["git", "init", "--quiet", other], check=True)
    subprocess.run(
        ["git", "-C", other, "-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c", "--allow-empty"],
        check=True,
    )
    done = set_up(tmp_path, "--from", str(other))
    assert done.returncode == 1
    assert f"does not hold commit {COMMIT[:8]}" in done.stderr
    assert not (tmp_path / "DEKR").exists()


@needs_git
def test_checkout_at_another_commit_is_refused(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path / "DEKR"], check=True)
    assert set_up(tmp_path).returncode != 0


@needs_git
@needs_checkout
@pytest.mark.parametrize("words", [["git", "apply", "--unidiff-zero"], ["patch", "-p1", "--quiet", "-i"]])
def test_patch_applies_by_git_and_by_patch(tmp_path, words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} here")
    clean = tmp_path / "clean"
    subprocess.run(["git", "clone", "--quiet", CHECKOUT, clean], check=True)
    subprocess.run([*words, ROOT / "DEKR.patch"], cwd=clean, check=True)
    for line in (ROOT / "DEKR.patch").read_text().splitlines():
        if line.startswith("+++ b/"):
            assert (clean / line[6:]).read_bytes() == (CHECKOUT / line[6:]).read_bytes()


@pytest.fixture(scope="module")
def upstream_run(tmp_path_factory):
    """Return a function that runs one of upstream's tools on drawn images with random weights."""
    from scripts.demo import people

    folder = tmp_path_factory.mktemp("upstream")
    people.write_data_set(folder / "data", "val2017", 2, seed=5)
    made = ["--output", str(folder / "w32.pth"), "--output_rescore", str(folder / "rescore.pth")]
    assert random_checkpoint.main(made) == 0
    pairs = {"DATASET.ROOT": "data", "DATASET.TEST": "val2017", "OUTPUT_DIR": "out", "LOG_DIR": "log"}
    pairs |= {"DATASET.INPUT_SIZE": "128", "TEST.MODEL_FILE": "w32.pth", "RESCORE.MODEL_FILE": "rescore.pth"}

    def run(tool: str, *flags: str, rescoring: str = "False") -> Path:
        settings = [word for pair in (pairs | {"RESCORE.VALID": rescoring}).items() for word in pair]
        command = [sys.executable, CHECKOUT / "tools" / tool, "--cfg", CHECKOUT / EXPERIMENT, *flags, *settings]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
        assert done.returncode == 0, done.stderr
        return folder

    return run


@needs_checkout
@pytest.mark.parametrize("rescoring", ["False", "True"])
def test_valid_of_upstream_writes_its_results(upstream_run, rescoring):
    folder = upstream_run("valid.py", rescoring=rescoring)
    (written,) = folder.glob("out/**/keypoints_val2017*_results.json")
    results = json.loads(written.read_text())
    assert len(results) > 10 and all(isinstance(entry["score"], float) for entry in results)


@needs_checkout
def test_demo_of_upstream_runs_on_a_cpu(upstream_run, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for value in (60, 120):
        video.write(np.full((96, 128, 3), value, np.uint8))
    video.release()
    upstream_run("inference_demo.py", "--videoFile", str(tmp_path / "v.avi"), "--outputDir", str(tmp_path / "made"))
    assert (tmp_path / "made" / "pose-data.csv").read_text().startswith("frame,nose_x,nose_y")


FAKE_TORCHVISION = """
def deform_conv2d(x, offset, weight, **options):
    calls.append(options)
    return x.new_full((x.shape[0], weight.shape[0], *x.shape[2:]), 7)
calls = []
"""


def patched_deform(folder: Path) -> ModuleType:
    """Import the deformable convolution that the patch adds."""
    text = (ROOT / "DEKR.patch").read_text().partition("+++ b/lib/models/deform.py\n")[2].partition("\ndiff ")[0]
    file = folder / "patched_deform.py"
    file.write_text("\n".join(line[1:] for line in text.splitlines()[1:]))
    spec = importlib.util.spec_from_file_location("patched_deform", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_patch_uses_torchvision_only_where_nothing_is_exported(tmp_path, monkeypatch):
    """The plain convolution costs memory in training; only it can be exported."""
    fake = ModuleType("torchvision.ops")
    exec(FAKE_TORCHVISION, fake.__dict__)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.ops", fake)
    net = patched_deform(tmp_path).DeformConv2d(2, 3, 3, padding=2, dilation=2)
    x, offset = torch.rand(1, 2, 5, 6), torch.zeros(1, 18, 5, 6)
    assert (net(x, offset) == 7).all() and fake.calls == [{"padding": 2, "dilation": 2}]
    traced = torch.jit.trace(net, (x, offset), check_trace=False)
    expected = torch.nn.functional.conv2d(x, net.weight, padding=2, dilation=2)
    torch.testing.assert_close(traced(x, offset), expected)
    torch.onnx.export(net, (x, offset), tmp_path / "net.onnx", dynamo=False)
    assert len(fake.calls) == 1


def test_patch_does_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    net = patched_deform(tmp_path).DeformConv2d(2, 3, 3, padding=1)
    x = torch.rand(1, 2, 5, 6)
    torch.testing.assert_close(net(x, torch.zeros(1, 18, 5, 6)), torch.nn.functional.conv2d(x, net.weight, padding=1))


@needs_checkout
def test_upstream_agrees_on_drawn_images(tmp_path):
    """Only where scripts/setup_upstream.sh was run."""
    from scripts.demo import people

    people.write_data_set(tmp_path / "data", "val2017", 2, seed=5)
    words = ["--upstream", CHECKOUT, "--root", tmp_path / "data", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/check_upstream.py", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for stage in ("tensor", "merged heatmap", "candidates", "final poses (pixels)", "ten metrics"):
        assert f"  {stage} " in done.stdout


def test_comparison_needs_a_checkout(tmp_path):
    assert_refused(run_command(check_upstream.main, "--upstream", tmp_path, "--root", tmp_path), 1, "no checkout")


@needs_checkout
@pytest.mark.long
@pytest.mark.parametrize("pairs", [
    ["TEST.INPUT_SIZES", "exact"],
    ["TEST.SCALE_FACTOR", "0.5,1,2", "TEST.MATCH_HMP", "True"],
    ["DATASET.INPUT_SIZE", "640", "DATASET.OUTPUT_SIZE", "160"],
    [],
])  # fmt: skip
def test_upstream_agrees_at_other_input_sizes_scales_and_joints(tmp_path, pairs):
    from scripts.demo import people
    from tests.support.other_joints import write_crowdpose

    people.write_data_set(tmp_path / "data", "val2017", 2, seed=5)
    words = ["--upstream", CHECKOUT, "--root", tmp_path / "data", "--threads", "1"]
    if not pairs:
        write_crowdpose(tmp_path / "data", tmp_path / "crowd")
        words = ["--upstream", CHECKOUT, "--root", tmp_path / "crowd", "--threads", "1", "--cfg", "dekr_w32_crowdpose"]
    command = [sys.executable, ROOT / "scripts/check_upstream.py", *map(str, words), *pairs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in ("tensor", "merged heatmap", "candidates", "final poses (pixels)", "result file"):
        assert f"  {stage} " in done.stdout
