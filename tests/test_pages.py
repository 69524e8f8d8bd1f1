"""README and docs: their commands run as printed, links lead somewhere, both languages say the same."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.demo import people

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = ROOT / "README.zh-CN.md"
BLOCK = re.compile(r"(?P<mark><!-- not run here: [^\n]+ -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:python3|bash|\.venv/bin/python) ((?:scripts/[\w/]+|DEKR_\w+)\.(?:py|sh))")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]\d+)?")
MOST_LINES, MOST_BYTES = 160, 300_000
FIRST = "random_checkpoint.py"  # the block with this command makes what the others need


class Block(NamedTuple):
    """A fenced part of a page with commands: each command with the output that is printed below it."""

    page: str
    commands: list[tuple[str, list[str]]]
    is_run: bool


def blocks_of(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text()):
        lines = match["text"].splitlines()
        commands: list[tuple[str, list[str]]] = []
        if match["kind"] == "bash":
            commands = [(line.partition("  #")[0].strip(), []) for line in lines]
        elif lines[0].startswith("$ "):
            for line in lines:
                if line.startswith("$ "):
                    commands.append((line[2:], []))
                else:
                    commands[-1][1].append(line)
        if commands:
            found.append(Block(page.name, commands, match["mark"] is None))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def test_every_command_is_in_a_block_that_is_run_or_says_why_not():
    assert len(BLOCKS) > 10 and any(FIRST in command for block in BLOCKS for command, _ in block.commands)
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            if match["kind"] == "":
                assert "python3 " not in match["text"] or match["text"].startswith("$ "), (
                    f"{page.name}: {match['text']}"
                )


@pytest.mark.parametrize("page", [*PAGES, CHINESE], ids=lambda page: page.name)
def test_no_page_has_a_place_left_for_figures_that_are_to_come(page):
    assert not re.findall(r"^[A-Z0-9_]{4,}$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, CHINESE], ids=lambda page: page.name)
def test_every_script_that_a_page_names_exists(page):
    missing = [name for name in COMMAND.findall(page.read_text()) if not (ROOT / name).is_file()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, CHINESE, ROOT / "scripts/demo/README.md"], ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_one_screen_with_one_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 1 and 10_000 < (ROOT / pictures[0]).stat().st_size < MOST_BYTES


def test_both_languages_have_the_same_headings_blocks_and_numbers():
    english, chinese = ((ROOT / "README.md").read_text(), CHINESE.read_text())
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", BLOCK.sub("", text), re.M)] for text in (english, chinese)]
    assert levels[0] == levels[1]
    blocks = [[match["text"] for match in BLOCK.finditer(text)] for text in (english, chinese)]
    assert blocks[0] == blocks[1]
    links = [sorted(link for link in LINK.findall(text) if link[0] != "#") for text in (english, chinese)]
    assert links[0] == links[1]
    prose = [sorted(NUMBER.findall(LINK.sub("", BLOCK.sub("", text)))) for text in (english, chinese)]
    assert prose[0] == prose[1]


# -- the commands themselves -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project with a data set of three drawn pictures, in two of the five sizes."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    people.write_data_set(folder / "data/coco", "val2017", 3, seed=1)
    (folder / "photos").mkdir()
    (folder / "models").mkdir()
    shutil.copy(ROOT / "docs/sheet.jpg", folder / "photos/photo.jpg")
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def shape(line: str) -> str:
    """A line of output without its numbers."""
    return " ".join(NUMBER.sub("#", line).split())


RUN = sorted(
    (block for block in BLOCKS if block.is_run and "quickstart.sh" not in block.commands[0][0]),
    key=lambda block: FIRST not in block.commands[0][0],
)


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}: {block.commands[0][0].split()[1]}")
def test_the_commands_of_a_page_run_as_printed(block, checkout):
    for command, expected in block.commands:
        done = run(command, checkout)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        printed = [shape(line) for line in (done.stdout + done.stderr).splitlines()]
        for line in expected:
            close = difflib.get_close_matches(shape(line), printed, 1, cutoff=0.8)
            assert close or line == "...", f"{command}: nothing like {line!r} in {printed}"
