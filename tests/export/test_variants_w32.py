"""W32 in every variant through the export command, which checks all input sizes, then the linter."""

import pytest

from dekr_infer.ascend.lint.check import load, preflight
from dekr_infer.ascend.lint.context import WARNING
from dekr_infer.cli import export as export_command
from dekr_infer.cli import random_checkpoint
from dekr_infer.export.variants import GATHER, GROUPED, PADDED, SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES
from tests.support.tiny_models import ONE_THREAD, SMALL_INPUT_SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

DEFORMABLE = {SEPARATE: 34, PADDED: 34, GROUPED: 2, GATHER: 0}


@pytest.fixture(scope="module")
def w32(tmp_path_factory):
    """A checkpoint of HRNet-W32 with random weights."""
    folder = tmp_path_factory.mktemp("w32")
    words = ["--output", str(folder / "w32.pth"), "--output_rescore", str(folder / "rescore.pth")]
    assert random_checkpoint.main(words) == 0
    return folder / "w32.pth"


def export_and_check(variant, path, pairs, input_sizes, capsys):
    """Check that the command proves the file at every input size, and that atc would take it."""
    words = ["--output", str(path), "--deform", variant, *pairs]
    assert export_command.main(words, input_sizes) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert out.count("  ok\n") == len(input_sizes) and f" {DEFORMABLE[variant]} deformable" in out
    findings = preflight(load(path))
    assert {finding.level for finding in findings} <= {WARNING}, findings


def test_a_tiny_network_in_one_variant(tiny, tmp_path, capsys):
    export_and_check(GROUPED, tmp_path / "tiny.onnx", [*ONE_THREAD, *tiny.pairs()], SMALL_INPUT_SIZES, capsys)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_w32_in_every_variant_at_all_five_input_sizes(w32, tmp_path, capsys, variant):
    assert len(PUBLISHED_SIZES) == 5
    export_and_check(variant, tmp_path / "w32.onnx", ["TEST.MODEL_FILE", str(w32)], PUBLISHED_SIZES, capsys)
