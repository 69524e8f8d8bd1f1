"""Which steps scripts/run_pipeline.sh does again, and what of their results it keeps.

The steps themselves are a stand-in for Python: it copies pictures to tensors and tensors to outputs, and, as the real
commands, only those that are missing.
"""

import sys
from pathlib import Path

import pytest

from tests.support.ascend_host import Done, Host, executed, refused

STEPS = f"""#!/bin/bash
value() {{ # FLAG WORD...: the word behind the flag
    local flag=$1
    shift
    while [[ $1 != "$flag" ]]; do shift; done
    echo "$2"
}}
copy() {{ # FROM TO ENDING
    mkdir -p "$2"
    for file in "$1"/*; do
        name=$(basename "${{file%.*}}")
        [[ -e $2/$name$3 ]] || cp "$file" "$2/$name$3"
    done
}}
printf '%s\\n' "$*" >>calls
case "$1 $2" in
*preprocess*)
    copy data/images/val2017 "$(value --output "$@")" .npy
    copy data/images/val2017 "$(value --output_flip "$@")" .npy
    [[ -z $MEANWHILE ]] || eval "$MEANWHILE" ;;
*pth2onnx*) cat "$(value TEST.MODEL_FILE "$@")" >"$(value --output "$@")" ;;
*"ascend.py chip") exec {sys.executable} "$@" ;;
*"ascend.py atc") echo "$*" >"$4" ;;
*"ascend.py bench") set -- "$@" --model "$3" ;;&
*onnx_infer* | *"ascend.py bench")
    out=$(value --output "$@")/$(value --output_dirname "$@")
    [[ "$*" != *--overwrite ]] || rm "$out"/*
    copy "$(value --input "$@")" "$out" _0.npy
    sha256sum <"$(value --model "$@")" >"${{out}}_record.jsonl"
    touch "${{out}}_summary.json" ;;
*postprocess*) mkdir -p results && echo done >results/metrics.json ;;
esac
"""
BOTH = ["infer", "infer_flip", "postprocess"]
ALL = ["preprocess", "export", *BOTH]


class Chain(Host):
    """A host with a data set, weights and the stand-in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "npu-smi")
        files = {
            "data/annotations/person_keypoints_val2017.json": "{}",
            "data/images/val2017/a.jpg": "a",
            "data/images/val2017/b.jpg": "b",
            "net.pth": "weights",
            "rescore.pth": "weights",
            "own.yaml": "settings",
        }
        for name in files:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / name).write_text(text)
        python = self.bin / "steps"
        python.write_text(STEPS)
        python.chmod(0o755)
        self.env["PYTHON"] = str(python)

    def go(self, *words: str, **env: str) -> Done:
        files = ("--data", "data", "--weights", "net.pth", "--rescore", "rescore.pth")
        return self.run("run_pipeline.sh", *files, *words, **env)

    def executed(self, *words: str, **env: str) -> list[str]:
        """The steps that were done, by a run that succeeded."""
        done = self.go(*words, **env)
        assert done.returncode == 0, done
        return executed(done)

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain(tmp_path)
    assert chain.executed() == ALL and chain.executed() == []
    return chain


@pytest.mark.parametrize(("lost", "steps"), [("out", BOTH[::2]), ("out_flip", BOTH[1:])])
def test_a_lost_output_is_made_again(chain, lost, steps):
    (chain.folder / lost / "a_0.npy").unlink()
    kept = (chain.folder / lost / "b_0.npy").stat()
    assert chain.executed() == steps and chain.text(f"{lost}/a_0.npy") == "a"
    assert (chain.folder / lost / "b_0.npy").stat() == kept
    assert chain.executed() == []


def test_an_emptied_folder_is_filled_again(chain):
    for file in (chain.folder / "prep_data").iterdir():
        file.unlink()
    assert chain.executed() == ["preprocess", *BOTH] and chain.text("prep_data/a.npy") == "a"


def test_an_output_that_was_cut_short_is_noticed(chain):
    (chain.folder / "out" / "a_0.npy").write_text("")
    assert "infer" in chain.executed()


def test_a_replaced_picture_reaches_the_outputs(chain):
    (chain.folder / "data/images/val2017/a.jpg").write_text("A")
    assert chain.executed() == ["preprocess", *BOTH]
    assert chain.text("prep_data/a.npy") == chain.text("prep_data_flip/a.npy") == "A"


def test_a_picture_replaced_while_the_step_runs_is_noticed(tmp_path):
    chain = Chain(tmp_path)
    assert chain.executed(MEANWHILE="echo -n A >data/images/val2017/a.jpg") == ALL
    assert chain.executed() == ["preprocess", *BOTH] and chain.text("prep_data/a.npy") == "A"
    assert chain.executed() == []


def test_settings_replaced_while_the_step_runs_are_noticed(tmp_path):
    chain = Chain(tmp_path)
    words = ("--cfg", "own.yaml")
    chain.executed(*words, MEANWHILE="echo other settings >own.yaml")
    assert "preprocess" in chain.executed(*words) and chain.executed(*words) == []


def test_what_a_stopped_step_made_of_an_older_picture_goes(tmp_path):
    chain = Chain(tmp_path)
    assert chain.go(MEANWHILE="exit 1").returncode == 1
    (chain.folder / "data/images/val2017/a.jpg").write_text("A")
    assert chain.executed() == ALL and chain.text("prep_data/a.npy") == "A"


def test_what_a_stopped_step_made_stays_when_nothing_changed(tmp_path):
    chain = Chain(tmp_path)
    assert chain.go(MEANWHILE="exit 1").returncode == 1
    (chain.folder / "prep_data" / "a.npy").write_text("made before")
    assert chain.executed() == ALL and chain.text("prep_data/a.npy") == "made before"


def test_tensors_that_no_run_of_ours_made_stay(tmp_path):
    chain = Chain(tmp_path)
    (chain.folder / "prep_data").mkdir()
    (chain.folder / "prep_data" / "a.npy").write_text("by hand")
    (chain.folder / "data/images/val2017/a.jpg").write_text("A")
    done = chain.go()
    assert executed(done) == ALL and done.stderr == "" and chain.text("prep_data/a.npy") == "by hand"


def test_pictures_of_another_split_spoil_nothing(chain):
    kept = (chain.folder / "prep_data" / "a.npy").stat()
    (chain.folder / "data/images/train2017.zip").write_text("zip")
    (chain.folder / "data/annotations/person_keypoints_train2017.json").write_text("{}")
    chain.executed()
    assert (chain.folder / "prep_data" / "a.npy").stat() == kept


def test_new_weights_make_new_outputs(chain):
    """The runner refuses to mix its outputs with those of another graph unless it is told to."""
    (chain.folder / "out" / "a_0.npy").write_text("made before")
    assert chain.executed() == ["infer", "postprocess"] and chain.text("out/a_0.npy") == "made before"
    (chain.folder / "net.pth").write_text("other weights")
    assert chain.executed() == ["export", *BOTH] and chain.text("out/a_0.npy") == "a"
    assert chain.executed() == []


def test_the_same_graph_made_again_leaves_the_outputs(chain):
    (chain.folder / "net.pth").touch()
    kept = (chain.folder / "out" / "a_0.npy").stat()
    assert chain.executed() == ["export", *BOTH] and (chain.folder / "out" / "a_0.npy").stat() == kept


def test_a_changed_configuration_file_concerns_every_step_that_reads_it(chain):
    words = ("--cfg", "own.yaml")
    assert chain.executed(*words) == ALL and chain.executed(*words) == []
    kept = (chain.folder / "prep_data" / "a.npy").stat()
    (chain.folder / "own.yaml").write_text("other settings")
    assert chain.executed(*words) == ALL
    assert (chain.folder / "prep_data" / "a.npy").stat() == kept


@pytest.mark.parametrize(
    ("pairs", "steps"),
    [
        (("RESCORE.VALID", "False"), ["postprocess"]),
        (("TEST.NMS_THRE", "0.1"), ["postprocess"]),
        (("MODEL.SPEC.STEM_CHANNELS", "4"), ["export", *BOTH]),
        (("DATASET.MAX_NUM_PEOPLE", "9"), ["preprocess", *BOTH]),
    ],
)
def test_a_setting_concerns_only_the_steps_that_use_it(chain, pairs, steps):
    assert chain.executed(*pairs) == steps and chain.executed(*pairs) == []


def test_all_settings_reach_every_step_that_reads_settings(tmp_path):
    """A misspelt key is then told by the first of them."""
    chain = Chain(tmp_path)
    chain.executed("TEST.NMS_THRE", "0.1", "DATASET.TEST", "val2017", "odd")
    calls = [line for line in chain.text("calls").splitlines() if "DATASET.ROOT" in line]
    assert len(calls) == 3
    for call in calls:
        assert "TEST.NMS_THRE 0.1" in call and "DATASET.TEST val2017" in call and call.endswith(" odd")


def test_the_rescoring_file_is_wanted_only_when_it_is_used(tmp_path):
    chain = Chain(tmp_path)
    (chain.folder / "rescore.pth").unlink()
    refused(chain.go(), 1, "rescore.pth: not there")
    refused(chain.go("RESCORE.VALID", "True"), 1, "rescore.pth: not there")
    assert chain.executed("RESCORE.VALID", "False") == ALL
    (chain.folder / "net.pth").unlink()
    refused(chain.go("RESCORE.VALID", "False"), 1, "net.pth: not there")


def test_another_chip_is_converted_for(tmp_path):
    chain = Chain(tmp_path)
    om = ("--backend", "om")
    assert "convert" in chain.executed(*om) and "--chip Ascend310P3" in chain.text("dekr_bs1.om")
    assert chain.executed(*om, "--chip", "310P3") == []
    assert chain.executed(*om, CHIP_NAME="910B4") == ["convert", *BOTH]
    assert "--chip Ascend910B4" in chain.text("dekr_bs1.om")
    assert chain.executed(*om, "--chip", "910B3") == ["convert", *BOTH]


def test_the_device_chooses_among_different_chips(tmp_path):
    chain = Chain(tmp_path)
    refused(chain.go("--backend", "om", NPU_SMI_LAYOUT="mixed"), 1, "different chips", "--device")
    chain.executed("--backend", "om", "--device", "1", NPU_SMI_LAYOUT="mixed")
    assert "--chip Ascend310\n" in chain.text("dekr_bs1.om")
