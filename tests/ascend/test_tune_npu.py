"""scripts/tune_npu.sh on fakes of the tools: ranking, failures, and steps that are not repeated."""

import json
import os
import re
import shlex
import shutil
import zipfile
from functools import partial
from pathlib import Path

import msgspec
import onnx
import pytest

from dekr_infer.ascend import tune
from dekr_infer.ascend import tuning_report as ranking
from dekr_infer.ascend.ais_bench import Summary
from dekr_infer.ascend.tuning_report import Outcome, Shares
from dekr_infer.cli import tune_npu
from dekr_infer.errors import ConfigError
from dekr_infer.export.parity import Difference
from dekr_infer.export.variants import GATHER, GROUPED, PADDED, SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.storage.atomic import folder_lock
from tests.support.ascend_host import FAKES, Host
from tests.support.coco_files import write_annotation
from tests.support.commands import assert_refused, run_command
from tests.support.tiny_models import PAIRS, SMALL_INPUT_SIZES, toy_model

TWO = InputSizes(SMALL_INPUT_SIZES.sizes[:2])
main = partial(tune_npu.main, input_sizes=TWO)
NAMES = [str(input_size) for input_size in TWO]


@pytest.fixture
def exported() -> list[str]:
    """The variants that were exported, in order."""
    return []


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Host:
    """A host with the tools, for commands in this process."""
    host = Host(tmp_path, "npu-smi", "atc")
    monkeypatch.chdir(host.folder)
    for key, value in (host.env | {"ASCEND_OPP_PATH": "loaded", "PYTHONPATH": str(FAKES)}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranking, "SAMPLE", dict(zip(TWO, (3, 1), strict=True)))
    return host


@pytest.fixture
def host(tools, monkeypatch, exported) -> Host:
    """The same, with toy graphs in place of the export."""
    (tools.folder / "net.pth").write_text("weights")

    def export(tuning: tune.Tuning, variant: str) -> None:
        exported.append(variant)
        onnx.save(toy_model(TWO, scale=1.0 + VARIANTS.index(variant)), tuning.graph(variant))

    monkeypatch.setattr(tune.Tuning, "export", export)
    return tools


def test_real_checkpoint_is_exported_converted_and_ranked(tools, tiny):
    words = ("--variants", GATHER, "--loop", "2", "--work", "my work", *tiny.pairs())
    ran = run_command(main, *words)
    assert ran.code == 0, ran
    found = by_name(report(tools.folder))
    assert {name: entry["problem"] for name, entry in found.items()} == {GATHER: None}
    graph = onnx.load(tools.folder / "my work" / "dekr_gather.onnx")
    noted = {entry.key: entry.value for entry in graph.metadata_props}
    assert (noted["deform"], noted["input_sizes"]) == (GATHER, str(TWO))


def test_variant_that_cannot_be_exported_is_reported(tools, tiny):
    (tools.folder / "net.pth").write_text("weights")
    ran = run_command(main, "--variants", GATHER, "--work", "w", *PAIRS, "TEST.MODEL_FILE", "net.pth")
    assert ran.code == 1 and "warning: gather: net.pth: " in ran.err


def tuned(*words: object):
    return run_command(main, "--work", "my work", "--loop", 3, *words, "TEST.MODEL_FILE", "net.pth")


def report(folder: Path) -> dict:
    return json.loads((folder / "my work" / "tune.json").read_text())


def by_name(found: dict) -> dict[str, dict]:
    return {entry["variant"]: entry for entry in found["variants"]}


def test_every_variant_is_ranked_by_its_weighted_time(host):
    ran = tuned()
    assert ran.code == 0, ran
    found = report(host.folder)
    assert (found["chip"], found["loop"]) == ("Ascend310P3", 3)
    assert [entry["rank"] for entry in found["variants"]] == [1, 2, 3, 4]
    means = [entry["mean_milliseconds"] for entry in found["variants"]]
    assert means == sorted(means)
    for entry in found["variants"]:
        assert list(entry["milliseconds"]) == NAMES
        first, second = entry["milliseconds"].values()
        assert entry["mean_milliseconds"] == pytest.approx((3 * first + second) / 4)
        for difference in entry["differences"].values():
            assert difference["heat"] == difference["offset"] == 0 and difference["largest_offset"] > 10
    best = found["variants"][0]["variant"]
    assert f"fastest here: {best}" in ran.out and f"--deform {best} TEST.MODEL_FILE net.pth" in ran.out
    command = next(line for line in ran.out.splitlines() if "scripts/ais_bench.sh" in line)
    assert shlex.split(command) == ["bash", "scripts/ais_bench.sh", f"my work/dekr_{best}.om"]
    assert "COCO train2017" in ran.out and f"{NAMES[0]} 75.0 %" in ran.out and "no files, no copies" in ran.out
    made = {f"dekr_{variant}.{kind}" for variant in VARIANTS for kind in ("onnx", "om")}
    assert {entry.name for entry in (host.folder / "my work").iterdir()} == made | {"steps_record.jsonl", "tune.json"}


def test_times_are_those_of_the_summary_of_each_input_size(host, monkeypatch):
    times = iter([[9.0, 1, 3], [20, 70, 30]])
    real = tune.run_pass

    def paced(frontend, job, extra):
        assert list(extra) == ["--loop", "3"] and job.device == 2
        summary = real(frontend, job, extra)
        assert len(summary.npu_compute_time_list) == 3
        return msgspec.structs.replace(summary, npu_compute_time_list=next(times))

    monkeypatch.setattr(tune, "run_pass", paced)
    assert tuned("--variants", PADDED, "--device", 2).code == 0
    (entry,) = report(host.folder)["variants"]
    assert list(entry["milliseconds"].values()) == [3, 30]
    assert entry["mean_milliseconds"] == pytest.approx((3 * 3 + 30) / 4)


def test_device_decides_where_chips_differ(host, monkeypatch):
    monkeypatch.setenv("NPU_SMI_LAYOUT", "mixed")
    assert_refused(tuned("--variants", PADDED), 1, "different chips", "--device")
    for number, chip in ((1, "Ascend310"), (0, "Ascend310P3")):
        assert tuned("--variants", PADDED, "--device", number).code == 0
        assert report(host.folder)["chip"] == chip


def test_summary_without_every_pass_is_refused(host, monkeypatch):
    monkeypatch.setattr(tune, "run_pass", lambda *_: Summary(1.0, [1.0, 1.0]))
    ran = tuned("--variants", PADDED)
    assert ran.code == 1 and "reports 2 passes at 64x96 instead of 3" in ran.out


def test_variant_that_atc_refuses_is_reported_and_the_others_are_ranked(host, monkeypatch):
    monkeypatch.setenv("ATC_TROUBLE", f"inner@{GROUPED}")
    ran = tuned("--variants", f"{GROUPED},{PADDED}")
    assert ran.code == 0, ran
    found = by_name(report(host.folder))
    assert (
        found[GROUPED]["rank"] is None and "E19999" in found[GROUPED]["problem"] and not found[GROUPED]["milliseconds"]
    )
    assert sorted(entry["rank"] for name, entry in found.items() if name != GROUPED) == [1]
    assert re.search(rf"^  - {GROUPED} +.*E19999", ran.out, re.MULTILINE)
    assert ran.err.splitlines()[-1].startswith(f"warning: {GROUPED}: ")


@pytest.mark.parametrize(("trouble", "part"), [("wrong", "differ from the CPU's at 64x96, 96x64"), ("nan", "NaN")])
def test_wrong_outputs_are_never_ranked_however_fast(host, monkeypatch, trouble, part):
    monkeypatch.setenv("AIS_BENCH_TROUBLE", f"{trouble}@{GATHER}")
    ran = tuned("--variants", f"{GATHER},{SEPARATE}")
    assert ran.code == 0 and f"fastest here: {SEPARATE}." in ran.out
    found = by_name(report(host.folder))
    assert found[GATHER]["rank"] is None and part in found[GATHER]["problem"]
    if trouble == "wrong":
        assert found[GATHER]["differences"]["64x96"]["offset"] > 10 and found[GATHER]["milliseconds"]


def test_no_ranked_variant_is_a_failure(host, monkeypatch):
    monkeypatch.setenv("ATC_TROUBLE", "inner")
    ran = tuned("--variants", f"{SEPARATE},{GATHER}")
    assert ran.code == 1 and ran.err.splitlines()[-1].startswith("error: no variant could be ranked")
    assert "fastest" not in ran.out and [e["rank"] for e in report(host.folder)["variants"]] == [None, None]


def repeated(out: str) -> list[str]:
    return re.findall(r"^== (\w+: \w+)$", out, re.MULTILINE)


@pytest.mark.long
def test_finished_steps_are_repeated_only_if_their_inputs_change(host, monkeypatch, exported):
    two = ("--variants", f"{SEPARATE},{PADDED}")
    monkeypatch.setenv("ATC_TROUBLE", f"inner@{PADDED}")
    assert (
        repeated(tuned(*two).out)
        == [f"{n}: {s}" for n in (SEPARATE, PADDED) for s in ("export", "convert", "time")][:5]
    )
    monkeypatch.setenv("ATC_TROUBLE", "")
    assert repeated(tuned(*two).out) == [f"{PADDED}: convert", f"{PADDED}: time"], "only what had failed"
    first = report(host.folder)
    again = tuned(*two, "--root", made_data(host.folder))
    assert again.code == 0 and repeated(again.out) == [] and again.out.count("done before") == 6
    assert by_name(report(host.folder))[PADDED]["milliseconds"] == by_name(first)[PADDED]["milliseconds"]
    assert report(host.folder)["sizes"]["counts"] == {"64x96": 2, "96x64": 1}
    assert repeated(tuned("--variants", SEPARATE, "--device", 1).out) == [f"{SEPARATE}: time"]
    assert repeated(tuned("--variants", SEPARATE, "--loop", 4).out) == [f"{SEPARATE}: time"]
    assert repeated(tuned("--variants", SEPARATE, "--loop", 4, "--chip", "910B4").out) == [f"{SEPARATE}: convert"] + [
        f"{SEPARATE}: time"
    ]
    (host.folder / "my work" / f"dekr_{SEPARATE}.om").write_text("damaged")
    assert f"{SEPARATE}: convert" in repeated(tuned("--variants", SEPARATE, "--loop", 4, "--chip", "910B4").out)
    exported.clear()
    (host.folder / "net.pth").write_text("other weights")
    assert tuned("--variants", SEPARATE).code == 0 and exported == [SEPARATE]


def test_another_atc_converts_again(host, monkeypatch):
    assert tuned("--variants", SEPARATE).code == 0
    other = host.folder / "newer"
    other.mkdir()
    (other / "atc").write_text(f'#!/bin/sh\nexec {FAKES / "atc"} "$@"\n')
    (other / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{os.environ['PATH']}")
    assert repeated(tuned("--variants", SEPARATE).out)[:1] == [f"{SEPARATE}: convert"]


def test_a_wrong_command_line_is_no_variants_problem(host, monkeypatch):
    def convert(*_: object) -> None:
        raise ConfigError("no such option")

    monkeypatch.setattr(tune.Tuning, "convert", convert)
    assert_refused(tuned("--variants", SEPARATE), 2, "no such option")


def made_data(folder: Path) -> Path:
    """An annotation file of two wide images and a high one; small input sizes stand in for the real ones."""
    root = folder / "data"
    write_annotation(root, {"a.jpg": Size(64, 96), "b.jpg": Size(64, 96), "c.jpg": Size(96, 64)})
    return root


def test_requirements_of_all_variants_are_checked_first(host, monkeypatch, exported):
    (host.bin / "npu-smi").unlink()
    assert_refused(tuned(), 1, "npu-smi: not found")
    (host.bin / "atc").unlink()
    assert_refused(tuned("--chip", "310P3"), 1, "atc: not found", "ASCEND_TOOLKIT_HOME")
    host.install("atc")
    monkeypatch.setenv("PYTHONPATH", "")
    assert_refused(tuned("--chip", "310P3"), 1, "ais_bench", "wheels")
    assert exported == [] and not (host.folder / "my work").exists()


def test_path_that_2025_refuses_is_reported_at_once(host, monkeypatch, exported):
    monkeypatch.setenv("AIS_BENCH_DIALECT", "T25")
    assert_refused(tuned(), 1, "my work", "name another folder")
    assert exported == []


@pytest.mark.parametrize("dialect", ["T25", "T26"])
def test_other_front_ends(host, monkeypatch, tmp_path, dialect):
    monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
    shutil.move(host.folder / "net.pth", tmp_path)
    monkeypatch.chdir(tmp_path)  # whose path has no space
    ran = run_command(main, "--work", tmp_path / "w", "--loop", 2, "--variants", GATHER, "TEST.MODEL_FILE", "net.pth")
    assert ran.code == 0, ran
    (entry,) = json.loads((tmp_path / "w" / "tune.json").read_text())["variants"]
    assert (entry["variant"], entry["rank"], entry["problem"]) == (GATHER, 1, None)
    assert list(entry["milliseconds"]) == NAMES and min(entry["milliseconds"].values()) > 0


def test_second_run_at_the_same_time_is_refused(host):
    with folder_lock(host.folder / "my work"):
        assert_refused(tuned(), 1, "my work", "another run")


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}'])
def test_damaged_record_is_named(host, content):
    (host.folder / "my work").mkdir()
    (host.folder / "my work" / "steps_record.jsonl").write_text(content)
    assert_refused(tuned(), 1, "steps_record.jsonl")


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--variants", "joined", "TEST.MODEL_FILE", "net.pth"], 2, "'joined' is none of"),
        (["--loop", "0", "TEST.MODEL_FILE", "net.pth"], 2, "--loop"),
        (["--heat_tolerance", "0", "TEST.MODEL_FILE", "net.pth"], 2, "--heat_tolerance"),
        (["TEST.MODEL_FILE", ""], 2, "TEST.MODEL_FILE"),
        (["TEST.MODEL_FIL", "net.pth"], 2, "TEST.MODEL_FILE"),
        (["TEST.MODEL_FILE", "gone.pth"], 1, "gone.pth"),
        (["--root", "gone", "TEST.MODEL_FILE", "net.pth"], 1, "gone/annotations"),
    ],
)
def test_mistakes(host, words, code, part):
    assert_refused(run_command(main, *words), code, part)


def test_variants_share_compiled_kernels(host):
    assert tuned("--variants", GATHER).code == 0
    given = zipfile.ZipFile(host.folder / "my work" / "dekr_gather.om").read("options").decode().split("\n")
    assert given[-2:] == ["--op_compiler_cache_mode=enable", "--log=error"]


def test_further_words_reach_atc(host):
    ran = run_command(
        main, "--work", "w", "--loop", 1, "--variants", GATHER, "TEST.MODEL_FILE", "net.pth", "--", "--lag=info"
    )
    assert ran.code == 1 and "E10003" in ran.out


# --- the ranking


def difference(input_size: Size, heat: float, offset: float) -> Difference:
    return Difference(input_size, heat, offset, 0.5, 40.0)


def test_ranking_by_hand():
    shares = Shares(PUBLISHED_SIZES, {PUBLISHED_SIZES[0]: 3, PUBLISHED_SIZES[1]: 1}, "by hand")
    times = dict.fromkeys(PUBLISHED_SIZES, 10.0)
    slow_often = Outcome(
        "a", times | {PUBLISHED_SIZES[0]: 20.0}, [difference(input_size, 0.01, 0.2) for input_size in PUBLISHED_SIZES]
    )
    slow_seldom = Outcome(
        "b",
        times | {PUBLISHED_SIZES[1]: 30.0},
        [difference(PUBLISHED_SIZES[0], 0.1, 1), difference(PUBLISHED_SIZES[1], 0, 4)],
    )
    failed, wrong = Outcome("c", {}, problem="refused"), Outcome("d", times, slow_often.differences, "differs")
    order = ranking.ranked([failed, slow_often, wrong, slow_seldom], shares)
    assert [outcome.variant for outcome in order] == ["b", "a", "c", "d"]
    lines = [line.split() for line in ranking.table(order, shares)]
    assert lines[1][:2] == ["1", "b"] and lines[1][7:9] == ["15.00", f"{1000 / 15:.2f}"]
    assert lines[1][9:] == ["1.0e-01", "of", "0.5", "4.0e+00", "of", "40"], "each output's own worst"
    assert lines[2][:2] == ["2", "a"] and lines[2][7:9] == ["17.50", f"{1000 / 17.5:.2f}"]
    assert lines[3] == ["-", "c", "refused"] and lines[4][:2] == ["-", "d"] and lines[5] == ["-", "d", "differs"]


@pytest.mark.parametrize(
    ("heat", "offset", "agrees"), [(0.05, 4, True), (0.051, 0, False), (0, 4.1, False), (float("nan"), 0, False)]
)
def test_tolerance_of_outputs(heat, offset, agrees):
    assert tune.agrees(difference(PUBLISHED_SIZES[0], heat, offset), 0.1, 0.1) is agrees


def test_shares_of_a_difference():
    assert difference(PUBLISHED_SIZES[0], 0.05, 4).heat_share == pytest.approx(0.1)
    assert difference(PUBLISHED_SIZES[0], 0.05, 4).offset_share == pytest.approx(0.1)
    nothing = Difference(PUBLISHED_SIZES[0], 0.0, 1.0, 0.0, 0.0)
    assert nothing.heat_share == 0 and nothing.offset_share == float("inf")


def test_sample_of_coco_has_every_input_size():
    assert set(ranking.SAMPLE) == set(PUBLISHED_SIZES) and sum(ranking.SAMPLE.values()) == 80
    assert ranking.shares_of(None).line().startswith("512x768 51.2 %, 512x512 2.5 %")
