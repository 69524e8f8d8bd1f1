"""Set-up: which Python is taken, what is installed when, and one clear line from every script where that is missing."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dekr_infer import launch
from tests.support.ascend_host import ROOT, Done, refused

STARTERS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("DEKR_*.py"), *(ROOT / "scripts").glob("*.py"))
    if path.name not in ("__init__.py", "ascend.py")
)
WRAPPERS = ("atc.sh", "ais_bench.sh", "chip_name.sh", "tune_npu.sh", "doctor.sh")

# An interpreter of the version in $FAKE (default: a supported one). `-m venv` copies it, and pip logs its words.
FAKE_PYTHON = """#!/usr/bin/env bash
self=$(readlink -f "$0")
case "$1 $2" in
"-m venv") mkdir -p "${@: -1}/bin"; rm -f "${@: -1}"/installed-*; cp "$self" "${@: -1}/bin/python"
    cp "$(dirname "$self")/answer" "${@: -1}/bin/answer"; touch "${@: -1}/pyvenv.cfg" ;;
"-m pip") echo "${@:3}" >>"$PIP_LOG"; [[ $3 != show ]] ;;
"-c "*python_error*) sed -n 1p "$(dirname "$self")/answer" ;;
"-c "*version_info*) sed -n 2p "$(dirname "$self")/answer" ;;
"-V "*) echo "Python of $(sed -n 2p "$(dirname "$self")/answer")" ;;
*) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Checkout:
    """A copy of what set-up needs, with fake interpreters."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("setup_venv.sh", "common.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        (self.root / "requirements.txt").write_text("numpy>=2.0\ntorch==2.13.0  # exactly\n")
        (self.root / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
        self.folder = folder
        self.log = folder / "pip.log"
        self.venv = self.root / ".venv"

    def python(self, name: str, problem: str = "") -> Path:
        """Make an interpreter with this complaint about its version."""
        path = self.folder / name / "python"
        path.parent.mkdir()
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)
        (path.parent / "answer").write_text(f"{problem}\n{name}\n")
        return path

    def set_up(self, *words: str, python: Path | None = None, index: str = "") -> tuple[Done, list[str]]:
        """Run set-up; return how it ended and what pip was called with."""
        self.log.write_text("")
        first = self.folder / "3.12"
        if not first.exists():
            self.python("3.12")
            (first / "python3").symlink_to(first / "python")
        env = {
            "PATH": f"{first}:/usr/bin:/bin",
            "PIP_LOG": str(self.log),
            "REAL_PYTHON": sys.executable,
            "TORCH_INDEX": index,
        }
        done = subprocess.run(
            ["bash", str(self.root / "scripts" / "setup_venv.sh"), *words],
            env=env | ({"PYTHON": str(python)} if python else {}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, [line for line in self.log.read_text().splitlines() if line.startswith("install ")]

    def version(self) -> str:
        """Return the name of the interpreter that .venv was made with."""
        return (self.venv / "bin" / "answer").read_text().splitlines()[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_set_up_installs_once_and_again_when_requirements_change(checkout):
    done, installed = checkout.set_up()
    assert done.returncode == 0 and len(installed) == 1 and installed[0].endswith("/requirements.txt")
    assert checkout.set_up("requirements.txt")[1] == []
    assert len(checkout.set_up("requirements-dev.txt")[1]) == 1
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("scipy\n")
    assert len(checkout.set_up()[1]) == 1


def test_an_unsupported_python_is_refused_before_anything_is_made(checkout):
    done, installed = checkout.set_up(python=checkout.python("3.7", "python is Python 3.7; 3.11 to 3.13 is needed"))
    refused(done, 1, "is Python 3.7; 3.11 to 3.13 is needed", "set PYTHON")
    assert installed == [] and not checkout.venv.exists()


@pytest.mark.parametrize("words", [("requirements.tx",), ("../no such folder/x",)])
def test_a_requirements_file_that_does_not_exist_is_named(checkout, words):
    done, installed = checkout.set_up(*words)
    refused(done, 2, words[0], "requirements-dev.txt")
    assert installed == [] and not checkout.venv.exists()


def test_a_venv_of_an_unsupported_python_is_made_again(checkout):
    checkout.set_up(python=checkout.python("3.13"))
    (checkout.venv / "bin" / "answer").write_text("is Python 3.10; 3.11 to 3.13 is needed\n3.10\n")
    done, installed = checkout.set_up()
    assert done.returncode == 0 and checkout.version() == "3.12" and len(installed) == 1
    assert "making .venv again" in done.stdout


def test_a_venv_whose_python_has_vanished_is_made_again(checkout):
    checkout.set_up()
    (checkout.venv / "bin" / "python").unlink()
    assert len(checkout.set_up()[1]) == 1


def test_a_venv_follows_PYTHON_but_stays_where_it_is_not_set(checkout):
    checkout.set_up(python=checkout.python("3.13"))
    assert checkout.set_up()[1] == [] and checkout.version() == "3.13"
    assert len(checkout.set_up(python=checkout.python("3.11"))[1]) == 1 and checkout.version() == "3.11"


def test_a_folder_of_the_user_in_place_of_the_venv_is_kept(checkout):
    checkout.venv.mkdir()
    (checkout.venv / "notes").write_text("mine")
    done, installed = checkout.set_up()
    refused(done, 1, "is not a virtual environment", "move it away")
    assert installed == [] and (checkout.venv / "notes").read_text() == "mine"


def test_the_cpu_build_of_torch_is_taken_where_its_index_answers(checkout):
    (checkout.folder / "torch").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=checkout.folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}"
        done, installed = checkout.set_up(index=index)
        server.shutdown()
    assert done.returncode == 0 and len(installed) == 2
    assert installed[0].endswith(f"--no-deps --index-url {index} torch==2.13.0")


@pytest.mark.parametrize("index", ["http://127.0.0.1:9", "file:///no/such/$(touch x)", "no address"])
def test_an_index_that_does_not_answer_is_passed_over(checkout, index):
    done, installed = checkout.set_up(index=index)
    assert done.returncode == 0 and len(installed) == 1 and "torch==" not in installed[0]


# -- every script, on a Python that cannot run it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a supported Python without any package."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("words", [(), ("--help",)], ids=["alone", "help"])
@pytest.mark.parametrize("script", STARTERS)
def test_without_packages_a_command_names_one_and_both_remedies(bare_python, script, words, tmp_path):
    done = run([bare_python, ROOT / script, *words], tmp_path)
    refused(done, 1, "has no package ", "source .venv/bin/activate", "setup_venv.sh")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("script", WRAPPERS)
def test_without_packages_a_wrapper_names_one_or_runs(bare_python, script, tmp_path):
    done = run(["bash", ROOT / "scripts" / script, "--help"], tmp_path, PYTHON=bare_python)
    if done.returncode:
        refused(done, 1, "has no package ", "setup_venv.sh")
    else:
        assert done.stdout.startswith(f"usage: {script} ") and done.stderr == ""
    assert done.returncode == 0 or script != "doctor.sh"


def test_without_packages_the_doctor_names_all_of_them(bare_python, tmp_path):
    done = run(["bash", ROOT / "scripts" / "doctor.sh", "--backend", "onnx"], tmp_path, PYTHON=bare_python)
    refused(done, 1, "marked BAD")
    (line,) = (line for line in done.stdout.splitlines() if " packages " in line)
    assert "numpy" in line and "opencv-python-headless" in line and "setup_venv.sh" in line


OLD_PYTHONS = sorted((Path.home() / ".pyenv/versions").glob("3.[789].*/bin/python"))


@pytest.mark.skipif(not OLD_PYTHONS, reason="no Python 3.7 to 3.9 below ~/.pyenv")
@pytest.mark.parametrize("script", [*STARTERS, *(f"scripts/{name}" for name in WRAPPERS)])
def test_an_old_python_is_named_in_one_line(script, tmp_path):
    for python in OLD_PYTHONS:
        words = ["bash", ROOT / script] if script.endswith(".sh") else [python, ROOT / script]
        done = run([*words, "--help"], tmp_path, PYTHON=python)
        version = ".".join(python.parents[1].name.split(".")[:2])
        refused(done, 1, f"is Python {version}; 3.11 to 3.13 is needed", "setup_venv.sh")
        assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_package_that_cannot_be_imported_is_named_with_its_reason(tmp_path, monkeypatch, capsys):
    def broken(name: str) -> None:
        raise ImportError("libGL.so.1: cannot open\nshared object file", name="cv2")

    monkeypatch.setattr(launch.importlib, "import_module", broken)
    assert launch.launch("preprocess", []) == 1
    error = capsys.readouterr().err
    assert "cannot import cv2 (libGL.so.1: cannot open shared object file)" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ImportError("libx.so: failed to map segment from shared object", name="cv2"), MemoryError()]
)
def test_little_memory_while_packages_are_imported_is_told_as_it_is(monkeypatch, capsys, error):
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(launch.importlib, "import_module", broken)
    assert launch.launch("preprocess", []) == 1
    assert capsys.readouterr().err == "error: not enough memory; free some, or use a machine with more\n"


def test_a_package_that_is_imported_later_is_named_as_well(monkeypatch, capsys):
    def main(argv: object) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(launch.importlib, "import_module", lambda name: type("Command", (), {"main": main}))
    assert launch.launch("export", []) == 1
    assert "has no package torch;" in capsys.readouterr().err


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_stays_one(monkeypatch):
    def broken(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(launch.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="No module named 'dekr_infer"):
        launch.launch("export", [])


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [*WRAPPERS, "quickstart.sh", "run_pipeline.sh", "setup_upstream.sh", "setup_venv.sh", "test.sh"]
)
def test_a_shell_script_has_help_with_its_own_name(script, tmp_path):
    done = run(["bash", ROOT / "scripts" / script, "--help"], tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith(f"usage: {script} ") or f"bash scripts/{script} " in done.stdout, done.stdout


@pytest.mark.parametrize("name", launch.COMMANDS)
def test_the_entry_point_runs_every_command_under_its_name(name, tmp_path):
    code = "import sys; from dekr_infer.launch import dekr; sys.exit(dekr())"
    done = run([sys.executable, "-c", code, name, "--help"], tmp_path, PYTHONPATH=ROOT)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: dekr {name} "), done.stdout + done.stderr


def test_the_entry_point_lists_the_commands_and_refuses_others(capsys):
    assert launch.dekr(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in launch.COMMANDS)
    assert launch.dekr([]) == 2
    assert capsys.readouterr().out == shown
    assert launch.dekr(["preproces"]) == 2
    assert capsys.readouterr().err == "error: unknown command preproces; did you mean preprocess? see dekr --help\n"


def run(words: list[object], folder: Path, **env: object) -> Done:
    """Run a command in this folder."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=keep | {name: str(value) for name, value in env.items()},
        capture_output=True,
        text=True,
        timeout=120,
    )
