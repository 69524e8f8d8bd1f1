"""Random and demo weights are told apart from trained ones: files, graphs, and the line that commands print."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from dekr_infer.backends.onnxruntime import OnnxRuntime
from dekr_infer.cli import doctor
from dekr_infer.model.checkpoint import read_state
from dekr_infer.model.weights import DEMO, DEMO_FILES, NOTES, RANDOM, TRAINED, least_trained, weights_kind
from dekr_infer.pose.rescore import load_rescore_net
from dekr_infer.storage.atomic import sha256
from tests.support.corruption import cut

DEMO_WEIGHTS = Path(__file__).resolve().parents[2] / "scripts" / "demo" / "weights"


def test_random_checkpoints_are_known_by_their_mark(tiny):
    assert weights_kind(tiny.checkpoint) == RANDOM
    assert load_rescore_net(tiny.checkpoint.with_name("rescore.pth"), 256).kind == RANDOM


def test_a_graph_takes_the_kind_over_from_its_checkpoint(tiny):
    assert OnnxRuntime(tiny.graph, 1).weights == RANDOM


def test_a_marked_file_is_a_plain_state_dict(tiny):
    plain = torch.load(tiny.checkpoint, weights_only=True)
    assert list(plain) == list(read_state(tiny.checkpoint)) == list(tiny.network.state_dict())


def test_weights_saved_after_training_have_no_mark(tiny, tmp_path):
    torch.save(tiny.network.state_dict(), tmp_path / "trained.pth")
    assert weights_kind(tmp_path / "trained.pth") == TRAINED


def test_the_shipped_demo_weights_are_known_by_their_checksums():
    listed = dict(line.split()[::-1] for line in (DEMO_WEIGHTS / "SHA256SUMS").read_text().splitlines())
    assert set(listed.values()) == DEMO_FILES
    for name, digest in listed.items():
        assert sha256(DEMO_WEIGHTS / name) == digest and weights_kind(DEMO_WEIGHTS / name) == DEMO


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_damaged_file_is_of_no_special_kind(tiny, tmp_path, keep):
    path = tmp_path / "net.pth"
    path.write_bytes(tiny.checkpoint.read_bytes())
    cut(path, keep)
    assert weights_kind(path) == TRAINED


def test_the_least_trained_part_decides():
    assert least_trained(TRAINED, DEMO, RANDOM) == RANDOM
    assert least_trained(None, DEMO) == DEMO
    assert least_trained() == least_trained(None, "other") == TRAINED


def test_doctor_names_the_kind_of_weights_and_graphs(tiny, tmp_path, capsys):
    (tmp_path / "final_rescore_coco_kpt.pth").write_bytes((DEMO_WEIGHTS / "rescore_demo.pth").read_bytes())
    (tmp_path / "pose_dekr_hrnetw32_coco.pth").write_bytes(tiny.checkpoint.read_bytes())
    onnx.save(tiny.model(), tmp_path / "dekr_bs1.onnx")
    (tmp_path / "dekr_bs1.om").write_bytes(b"of atc")
    for check, kind in zip(doctor.models(tmp_path), (RANDOM, DEMO, RANDOM, ""), strict=True):
        assert check.found.endswith(f"; {NOTES[kind]}") if kind else "weights" not in check.found
