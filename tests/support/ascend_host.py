"""A host with fakes of the Ascend tools: the real scripts run on it as subprocesses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import onnx

from tests.support.tiny_models import SMALL_INPUT_SIZES

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
Done = subprocess.CompletedProcess[str]


class Host:
    """A folder with a space in its name to work in, and a PATH of just the tools asked for."""

    def __init__(self, folder: Path, *tools: str) -> None:
        self.folder = folder / "a place"
        self.home = folder / "home"
        self.bin = folder / "tools"
        for made in (self.folder, self.home, self.bin):
            made.mkdir()
        for tool in tools:
            self.install(tool)
        self.env = {
            "PATH": os.pathsep.join((str(self.bin), str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "HOME": str(self.home),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def install(self, tool: str) -> None:
        """Put a fake on the PATH."""
        (self.bin / tool).symlink_to(FAKES / tool)

    def install_toolkit(self, place: str = "Ascend/ascend-toolkit") -> Path:
        """Create a toolkit below the home folder, whose set_env.sh brings the fake atc; return its folder."""
        toolkit = self.home / place
        (toolkit / "bin").mkdir(parents=True)
        (toolkit / "bin" / "atc").symlink_to(FAKES / "atc")
        lines = ('echo "loaded $UNSET_VARIABLE"', f'export PATH="{toolkit}/bin:$PATH" ASCEND_OPP_PATH="{toolkit}/opp"')
        (toolkit / "set_env.sh").write_text("\n".join(("false", *lines, "")))
        return toolkit

    def command(self, script: str, *words: object) -> list[str]:
        """Return the command line of a script of the project, for any current folder."""
        return ["bash", str(ROOT / "scripts" / script), *map(str, words)]

    def start(self, script: str, *words: object, **env: str) -> subprocess.Popen[str]:
        """Start a script here, in a session of its own."""
        return subprocess.Popen(
            self.command(script, *words),
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=one_core,
        )

    def stop(self, process: subprocess.Popen[str], text: str, number: int) -> Done:
        """Send a signal to a started script alone, once a text is printed; return how it ended."""
        assert process.stdout is not None
        while text not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        return Done(process.args, process.returncode, out, err)

    def left_running(self) -> list[str]:
        """Return the command lines of the processes that were started on this host and still run."""
        mark, found = f"HOME={self.home}".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended, or is not ours to read
        return [command for command in found if command]  # one without is a zombie

    def wait_for_quiet(self, seconds: float) -> None:
        """Wait until nothing that was started on this host still runs."""
        deadline = time.monotonic() + seconds
        while (running := self.left_running()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running == []

    def run(self, script: str, *words: object, **env: str) -> Done:
        """Run a script here and wait for its end."""
        return subprocess.run(
            self.command(script, *words),
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=400,
            preexec_fn=one_core,
        )


def one_core() -> None:
    """Bind this process to a core of its test worker: on work this small, several threads only wait for each other."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % len(allowed)]})


def refused(done: Done, code: int, *parts: str) -> None:
    """Assert the exit code, and that the last line on stderr is the one error line and holds the parts."""
    assert done.returncode == code, done
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    assert "Traceback" not in done.stderr  # a tool's own may be on stdout
    for part in parts:
        assert part in lines[-1], lines[-1]


def compile_fake(model: onnx.ModelProto, path: Path) -> None:
    """Write what the fake atc would write."""
    with zipfile.ZipFile(path, "w") as stand_in:
        stand_in.writestr("model.onnx", model.SerializeToString())
        stand_in.writestr("input_sizes", str(SMALL_INPUT_SIZES))


def steps(out: str) -> dict[str, bool]:
    """Return the name of each step that a pipeline run printed, and whether the run executed it."""
    return {name: not before for name, before in re.findall(r"^== (\w+)(: done before)?$", out, re.MULTILINE)}


def executed(done: Done) -> list[str]:
    """Return the names of the steps that a pipeline run executed."""
    return [name for name, fresh in steps(done.stdout).items() if fresh]
