"""The patch, its set-up script, and `--upstream`; with a stand-in for the checkout where the real one is not needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from dekr_infer.cli import check_upstream
from dekr_infer.cli import export as export_command
from dekr_infer.config.load import fill
from dekr_infer.config.schema import DEFAULTS
from dekr_infer.errors import ConfigError
from tests.support.helpers import assert_refused, run_command
from tests.support.tiny_models import PAIRS

pytest_plugins = ["tests.support.tiny_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = ROOT / "DEKR"
COMMIT = "7a303139e92bdf3eab8d899415ccac37374285a4"
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


def test_the_patch_has_no_context_lines_and_touches_little():
    lines = (ROOT / "DEKR.patch").read_text().splitlines()
    kinds = [line[:1] for line in lines if not line.startswith(("diff ", "--- ", "+++ ", "@@ ", "new file"))]
    assert set(kinds) == {"+", "-"}
    assert kinds.count("-") <= 60
    assert all(line.endswith("@@") for line in lines if line.startswith("@@ ")), "hunk heads quote nothing"


def test_the_network_of_the_checkout_is_exported_from_its_own_configuration(stand_in, tiny, tmp_path):
    """In a process of its own, because the checkout's modules are called `config` and `models`."""
    graph = tmp_path / "upstream.onnx"
    words = ("--upstream", stand_in, "--output", graph, "--skip_check", "TEST.MODEL_FILE", tiny.checkpoint, *PAIRS)
    done = subprocess.run(
        [sys.executable, ROOT / "DEKR_pth2onnx.py", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs = onnx.load(tiny.graph), onnx.load(graph)
    assert ours.graph == theirs.graph


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    assert_refused(run_command(export_command.main, "--upstream", tmp_path), 1, str(tmp_path), "setup_upstream.sh")


def test_a_checkout_without_the_patch_is_refused(stand_in):
    (stand_in / "lib/models/deform.py").unlink()
    assert_refused(run_command(export_command.main, "--upstream", stand_in), 1, "DEKR.patch is not applied")


def test_a_configuration_that_the_checkout_cannot_build_is_one_line(stand_in, tmp_path):
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
def test_wrong_words_end_in_one_line(tmp_path, words, code, message):
    done = set_up(tmp_path, *words)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "DEKR").exists()


@needs_git
def test_a_clone_without_the_commit_is_refused_and_leaves_nothing(tmp_path):
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
def test_a_checkout_at_another_commit_is_refused(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path / "DEKR"], check=True)
    assert set_up(tmp_path).returncode != 0


@pytest.mark.skipif(not (CHECKOUT / "lib/models/deform.py").is_file(), reason="no DEKR/ here")
def test_upstream_agrees_on_drawn_pictures(tmp_path):
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


def test_the_comparison_needs_a_checkout(tmp_path):
    assert_refused(run_command(check_upstream.main, "--upstream", tmp_path, "--root", tmp_path), 1, "no checkout")
