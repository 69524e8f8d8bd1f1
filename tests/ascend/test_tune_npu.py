"""scripts/tune_npu.sh on doubles of the tools: what is ranked, what is told, what is not done again."""

import json
import re
import shlex
import zipfile
from argparse import Namespace
from pathlib import Path

import onnx
import pytest
from dekr_infer.ascend.step_cache import Stages

from dekr_infer.ascend import tune
from dekr_infer.ascend import tuning_report as ranking
from dekr_infer.ascend.tuning_report import Outcome, Shares
from dekr_infer.errors import DekrError
from dekr_infer.export.parity import Difference
from dekr_infer.export.variants import GATHER, GROUPED, PADDED, SEPARATE, VARIANTS
from dekr_infer.geometry import PUBLISHED_SIZES, InputSizes, Size
from dekr_infer.storage import npy as tensors
from tests.support.ascend_host import DOUBLES, Host
from tests.support.helpers import assert_refused, run_command, write_annotation
from tests.support.tiny_models import SMALL_INPUT_SIZES, toy_model

pytest_plugins = ["tests.support.tiny_fixtures"]
TWO = InputSizes(SMALL_INPUT_SIZES.sizes[:2])
NAMES = [str(input_size) for input_size in TWO]


@pytest.fixture
def exported() -> list[str]:
    """The forms that were exported, in order."""
    return []


@pytest.fixture
def host(tmp_path, monkeypatch, exported) -> Host:
    """A host with the tools, for commands in this process: small sizes, and toy graphs in place of the export."""
    host = Host(tmp_path, "npu-smi", "atc")
    monkeypatch.chdir(host.folder)
    for key, value in (host.env | {"ASCEND_OPP_PATH": "loaded", "PYTHONPATH": str(DOUBLES)}).items():
        monkeypatch.setenv(key, value)
    (host.folder / "net.pth").write_text("weights")
    for module in (tune, ranking):
        monkeypatch.setattr(module, "PUBLISHED_SIZES", TWO)
    monkeypatch.setattr(ranking, "SAMPLE", dict(zip(TWO, (3, 1), strict=True)))

    def export(trial: tune.Trial) -> None:
        exported.append(trial.variant)
        onnx.save(toy_model(TWO, scale=1.0 + VARIANTS.index(trial.variant)), trial.graph)

    monkeypatch.setattr(tune.Trial, "export", export)
    return host


EXPORTER = """
import sys
from pathlib import Path
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if words["--deform"] == "padded":
    sys.exit("noise\\nerror: models/x.pth: no such checkpoint")
Path(words["--output"]).write_text(repr(sys.argv[1:]))
"""


def test_the_export_is_the_command_that_anyone_would_type(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "EXPORT", tmp_path / "export.py")
    tune.EXPORT.write_text(EXPORTER)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    args = Namespace(work=tmp_path, cfg="demo", pairs=["TEST.MODEL_FILE", "a b.pth"])
    frontend = tune.Frontend("python3", False, False)
    for variant in (GATHER, PADDED):
        trial = tune.Trial(variant, args, [], frontend, Stages(tmp_path / "s.json"), scratch)
        if variant == PADDED:
            with pytest.raises(DekrError, match=r"^not exported: models/x.pth: no such checkpoint$"):
                trial.export()
            assert not trial.graph.exists()
            continue
        trial.export()
        words = ["--output", str(scratch / "dekr_gather.onnx"), "--deform", GATHER]
        words += ["--cfg", "demo", "TEST.MODEL_FILE", "a b.pth"]
        assert trial.graph.read_text() == repr(words) and not list(scratch.iterdir())


def tuned(*words: object):
    return run_command(tune.main, "--work", "my work", "--loop", 3, *words, "TEST.MODEL_FILE", "net.pth")


def report(folder: Path) -> dict:
    return json.loads((folder / "my work" / "tune.json").read_text())


def by_name(told: dict) -> dict[str, dict]:
    return {entry["variant"]: entry for entry in told["variants"]}


def test_every_form_is_ranked_by_its_weighted_time(host):
    ran = tuned()
    assert ran.code == 0, ran
    told = report(host.folder)
    assert (told["chip"], told["loop"]) == ("Ascend310P3", 3)
    assert [entry["rank"] for entry in told["variants"]] == [1, 2, 3, 4]
    means = [entry["mean_milliseconds"] for entry in told["variants"]]
    assert means == sorted(means)
    for entry in told["variants"]:
        assert list(entry["milliseconds"]) == NAMES
        first, second = entry["milliseconds"].values()
        assert entry["mean_milliseconds"] == pytest.approx((3 * first + second) / 4)
        for difference in entry["differences"].values():
            assert difference["heat"] == difference["offset"] == 0 and difference["largest_offset"] > 10
    best = told["variants"][0]["variant"]
    assert f"fastest here: {best}" in ran.out and f"--deform {best} TEST.MODEL_FILE net.pth" in ran.out
    command = next(line for line in ran.out.splitlines() if "scripts/ais_bench.sh" in line)
    assert shlex.split(command) == ["bash", "scripts/ais_bench.sh", f"my work/dekr_{best}.om"]
    assert "COCO train2017" in ran.out and f"{NAMES[0]} 75.0 %" in ran.out and "files and copies left out" in ran.out
    made = {f"dekr_{variant}.{kind}" for variant in VARIANTS for kind in ("onnx", "om")}
    assert {entry.name for entry in (host.folder / "my work").iterdir()} == made | {"stages.json", "tune.json"}


def test_the_times_are_those_of_the_summary_input_size_by_input_size(host, monkeypatch):
    times = iter([[9.0, 1, 3], [20, 70, 30]])
    real = tune.run_pass

    def paced(frontend, job, extra):
        assert list(extra) == ["--loop", "3"] and job.device == 2
        summary = real(frontend, job, extra)
        assert len(summary["npu_compute_time_list"]) == 3
        return summary | {"npu_compute_time_list": next(times)}

    monkeypatch.setattr(tune, "run_pass", paced)
    assert tuned("--variants", PADDED, "--device", 2).code == 0
    (entry,) = report(host.folder)["variants"]
    assert list(entry["milliseconds"].values()) == [3, 30]
    assert entry["mean_milliseconds"] == pytest.approx((3 * 3 + 30) / 4)


def test_where_chips_differ_the_device_tells_which_is_meant(host, monkeypatch):
    monkeypatch.setenv("NPU_SMI_LAYOUT", "mixed")
    assert_refused(tuned("--variants", PADDED), 1, "different chips", "--device")
    for number, chip in ((1, "Ascend310"), (0, "Ascend310P3")):
        assert tuned("--variants", PADDED, "--device", number).code == 0
        assert report(host.folder)["chip"] == chip


def test_a_summary_that_does_not_tell_every_pass_is_not_believed(host, monkeypatch):
    monkeypatch.setattr(tune, "run_pass", lambda *_: {"npu_compute_time_list": [1.0, 1.0]})
    ran = tuned("--variants", PADDED)
    assert ran.code == 1 and "tells of 2 passes at 64x96, not of 3" in ran.out


def test_a_form_that_atc_refuses_is_told_and_the_others_are_ranked(host, monkeypatch):
    monkeypatch.setenv("ATC_TROUBLE", f"inner@{GROUPED}")
    ran = tuned("--variants", f"{GROUPED},{PADDED}")
    assert ran.code == 0, ran
    told = by_name(report(host.folder))
    assert told[GROUPED]["rank"] is None and "E19999" in told[GROUPED]["problem"] and not told[GROUPED]["milliseconds"]
    assert sorted(entry["rank"] for name, entry in told.items() if name != GROUPED) == [1]
    assert re.search(rf"^  - {GROUPED} +.*E19999", ran.out, re.MULTILINE)
    assert ran.err.splitlines()[-1].startswith(f"warning: {GROUPED}: ")


@pytest.mark.parametrize(("trouble", "part"), [("wrong", "differ from the CPU's at 64x96, 96x64"), ("nan", "NaN")])
def test_wrong_outputs_are_never_ranked_however_fast(host, monkeypatch, trouble, part):
    monkeypatch.setenv("AIS_BENCH_TROUBLE", f"{trouble}@{GATHER}")
    ran = tuned("--variants", f"{GATHER},{SEPARATE}")
    assert ran.code == 0 and f"fastest here: {SEPARATE}." in ran.out
    told = by_name(report(host.folder))
    assert told[GATHER]["rank"] is None and part in told[GATHER]["problem"]
    if trouble == "wrong":
        assert told[GATHER]["differences"]["64x96"]["offset"] > 10 and told[GATHER]["milliseconds"]


def test_no_form_left_is_a_failure(host, monkeypatch):
    monkeypatch.setenv("ATC_TROUBLE", "inner")
    ran = tuned("--variants", f"{SEPARATE},{GATHER}")
    assert ran.code == 1 and ran.err.splitlines()[-1].startswith("error: none of the forms could be ranked")
    assert "fastest" not in ran.out and [e["rank"] for e in report(host.folder)["variants"]] == [None, None]


def anew(out: str) -> list[str]:
    return re.findall(r"^== (\w+: \w+)$", out, re.MULTILINE)


def test_what_is_done_is_not_done_again_until_its_inputs_change(host, monkeypatch, exported):
    two = ("--variants", f"{SEPARATE},{PADDED}")
    monkeypatch.setenv("ATC_TROUBLE", f"inner@{PADDED}")
    assert anew(tuned(*two).out) == [f"{n}: {s}" for n in (SEPARATE, PADDED) for s in ("export", "convert", "time")][:5]
    monkeypatch.setenv("ATC_TROUBLE", "")
    assert anew(tuned(*two).out) == [f"{PADDED}: convert", f"{PADDED}: time"], "only what had failed"
    first = report(host.folder)
    monkeypatch.setattr(ranking, "input_size_for", lambda size: size)
    again = tuned(*two, "--root", made_data(host.folder))
    assert again.code == 0 and anew(again.out) == [] and again.out.count("done before") == 6
    assert by_name(report(host.folder))[PADDED]["milliseconds"] == by_name(first)[PADDED]["milliseconds"]
    assert report(host.folder)["sizes"]["counts"] == {"64x96": 2, "96x64": 1}
    assert anew(tuned("--variants", SEPARATE, "--device", 1).out) == [f"{SEPARATE}: time"]
    assert anew(tuned("--variants", SEPARATE, "--loop", 4).out) == [f"{SEPARATE}: time"]
    assert anew(tuned("--variants", SEPARATE, "--loop", 4, "--chip", "910B4").out) == [f"{SEPARATE}: convert"] + [
        f"{SEPARATE}: time"
    ]
    (host.folder / "my work" / f"dekr_{SEPARATE}.om").write_text("damaged")
    assert f"{SEPARATE}: convert" in anew(tuned("--variants", SEPARATE, "--loop", 4, "--chip", "910B4").out)
    exported.clear()
    (host.folder / "net.pth").write_text("other weights")
    assert tuned("--variants", SEPARATE).code == 0 and exported == [SEPARATE]


def made_data(folder: Path) -> Path:
    """An annotation file of two wide pictures and a high one; small input sizes stand in for the real ones."""
    root = folder / "data"
    write_annotation(root, {"a.jpg": Size(64, 96), "b.jpg": Size(64, 96), "c.jpg": Size(96, 64)})
    return root


def test_what_all_forms_need_is_looked_for_first(host, monkeypatch, exported):
    (host.bin / "npu-smi").unlink()
    assert_refused(tuned(), 1, "npu-smi: not found")
    (host.bin / "atc").unlink()
    assert_refused(tuned("--chip", "310P3"), 1, "atc: not found", "ASCEND_TOOLKIT_HOME")
    host.install("atc")
    monkeypatch.setenv("PYTHONPATH", "")
    assert_refused(tuned("--chip", "310P3"), 1, "ais_bench", "wheels")
    assert exported == [] and not (host.folder / "my work").exists()


def test_a_path_that_the_frontend_of_2025_refuses_is_told_at_once(host, monkeypatch, exported):
    monkeypatch.setenv("AIS_BENCH_DIALECT", "T25")
    assert_refused(tuned(), 1, "my work", "rename")
    assert exported == []


@pytest.mark.parametrize("dialect", ["T25", "T26"])
def test_the_other_frontends(host, monkeypatch, tmp_path, dialect):
    monkeypatch.setenv("AIS_BENCH_DIALECT", dialect)
    ran = run_command(
        tune.main, "--work", tmp_path / "w", "--loop", 2, "--variants", GATHER, "TEST.MODEL_FILE", "net.pth"
    )
    assert ran.code == 0, ran


def test_a_second_run_at_the_same_time_is_refused(host):
    with tensors.exclusive(host.folder / "my work"):
        assert_refused(tuned(), 1, "my work", "another run")


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}'])
def test_a_damaged_record_is_named(host, content):
    (host.folder / "my work").mkdir()
    (host.folder / "my work" / "stages.json").write_text(content)
    assert_refused(tuned(), 1, "stages.json")


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
    assert_refused(run_command(tune.main, *words), code, part)


def test_the_forms_share_their_kernels(host):
    assert tuned("--variants", GATHER).code == 0
    given = zipfile.ZipFile(host.folder / "my work" / "dekr_gather.om").read("options").decode().split("\n")
    assert given[-2:] == ["--op_compiler_cache_mode=enable", "--log=error"]


def test_words_for_atc_reach_it(host):
    ran = run_command(
        tune.main, "--work", "w", "--loop", 1, "--variants", GATHER, "TEST.MODEL_FILE", "net.pth", "--", "--lag=info"
    )
    assert ran.code == 1 and "E10003" in ran.out


# --- the figures


def difference(input_size: Size, heat: float, offset: float) -> Difference:
    return Difference(input_size, heat, offset, 0.5, 40.0)


def test_a_ranking_by_hand():
    shares = Shares({PUBLISHED_SIZES[0]: 3, PUBLISHED_SIZES[1]: 1}, "by hand")
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
def test_what_counts_as_equal(heat, offset, agrees):
    args = Namespace(heat_tolerance=0.1, offset_tolerance=0.1)
    assert tune._agrees(difference(PUBLISHED_SIZES[0], heat, offset), args) is agrees


def test_the_shares_of_a_difference():
    assert difference(PUBLISHED_SIZES[0], 0.05, 4).heat_share == pytest.approx(0.1)
    assert difference(PUBLISHED_SIZES[0], 0.05, 4).offset_share == pytest.approx(0.1)
    nothing = Difference(PUBLISHED_SIZES[0], 0.0, 1.0, 0.0, 0.0)
    assert nothing.heat_share == 0 and nothing.offset_share == float("inf")


def test_the_sample_of_coco_has_every_input_size():
    assert set(ranking.SAMPLE) == set(PUBLISHED_SIZES) and sum(ranking.SAMPLE.values()) == 80
    assert ranking.shares_of(None).line().startswith("512x768 51.2 %, 512x512 2.5 %")


def test_a_stage_is_done_once_for_its_inputs_and_its_file(tmp_path):
    made, done = tmp_path / "made", []

    def work() -> int:
        made.write_text("whole")
        done.append(1)
        return len(done)

    path = tmp_path / "stages.json"
    for inputs, wanted in (({"a": (1, 2)}, 1), ({"a": [1, 2]}, 1), ({"a": [2]}, 2)):
        assert Stages(path).do("it", inputs, work, made) == wanted
    made.write_text("cut")
    assert Stages(path).do("it", {"a": [2]}, work, made) == 3

    def fails() -> None:
        raise DekrError("no")

    with pytest.raises(DekrError):
        Stages(path).do("it", {"a": [3]}, fails, made)
    assert Stages(path).known == {}, "what is out of date is forgotten before the work begins"
