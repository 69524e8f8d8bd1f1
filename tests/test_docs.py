"""The pages in docs/, the doctests of every module, and what packaging and set-up state more than once."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dekr_infer import launch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FACTS = [int(number) for number in re.findall(r"^\[(\d+)\] ", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)]
WITH_SNIPPETS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("dekr_infer", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if ">>>" in path.read_text()
)
SOURCES = sorted(
    path
    for pattern in (
        "*.md",
        "DEKR_*.py",
        "docs/*.md",
        "dekr_infer/**/*.py",
        "scripts/**/*.py",
        "scripts/*.sh",
        "tests/**/*.py",
    )
    for path in ROOT.glob(pattern)
)
CITATION = re.compile(r"docs/reference\.md(?:\)?,? (?:facts? )?)((?:\[\d+\](?:, | and | to )?)+)")
PAGE = re.compile(r"[\w./-]*\w\.md\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_print_its_output(page):
    assert doctest.testfile(str(page), module_relative=False, encoding="utf-8").failed == 0


def test_the_conventions_have_snippets():
    assert doctest.DocTestParser().get_examples((ROOT / "docs/conventions.md").read_text())


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_the_snippets_of_a_module_print_its_output(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def cited(text: str) -> Iterator[int]:
    """Yield the numbers of the facts that a text cites, ranges written out."""
    for group in CITATION.findall(" ".join(text.split())):
        for first, _, last in re.findall(r"\[(\d+)\]( to \[(\d+)\])?", group):
            yield from range(int(first), int(last or first) + 1)


def test_ranges_and_lists_of_citations_are_read():
    text = "docs/reference.md [2] and [5] to [7], and docs/reference.md [9]; [99] is none"
    assert list(cited(text)) == [2, 5, 6, 7, 9]


def test_every_cited_fact_exists_and_numbers_are_unique():
    assert len(FACTS) == len(set(FACTS)) and sorted(FACTS) == FACTS
    numbers = {number for path in SOURCES for number in cited(path.read_text()) if path != Path(__file__)}
    assert numbers and numbers <= set(FACTS)
    prose = (ROOT / "docs/conventions.md").read_text()
    assert {int(number) for number in re.findall(r"(?<=\s)\[(\d+)\]", prose)} <= set(FACTS)


def test_no_text_cites_a_page_that_is_not_in_the_repository():
    missing = {
        f"{path.relative_to(ROOT)}: {page}"
        for path in SOURCES
        for page in PAGE.findall(path.read_text())
        if not (ROOT / page).is_file() and not (path.parent / page).is_file() and path != Path(__file__)
    }
    assert not missing
    assert not [path for path in SOURCES if "the reference's facts" in path.read_text() and path != Path(__file__)]


# -- what is stated more than once -------------------------------------------------------------------------------------

OLDEST, NEWEST = (".".join(map(str, version)) for version in (launch.OLDEST, launch.NEWEST))


@pytest.mark.parametrize("name", ["README.md", "requirements.txt", "scripts/setup_venv.sh"])
def test_the_range_of_python_is_the_same_everywhere(name):
    text = (ROOT / name).read_text()
    assert f"Python {OLDEST} to {NEWEST}" in text
    assert {f"{first} to {last}" for first, last in re.findall(r"(3\.\d+) to (3\.\d+)", text)} == {
        f"{OLDEST} to {NEWEST}"
    }


def test_the_package_declares_what_requirements_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={OLDEST}"
    assert project["dependencies"] == requirements("requirements.txt")
    assert project["optional-dependencies"]["dev"] == requirements("requirements-dev.txt")


def requirements(name: str) -> list[str]:
    """Return the lines of a requirements file without comments and references to other files."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_what_the_commands_make_is_ignored_and_no_source_is():
    made = (
        *("prep_data/a.npy", "prep_data_flip.partial/a", "out_flip/a_0.npy", "out_summary.json", "out_record.jsonl"),
        *(
            "results/metrics.json",
            "overlays/sheet.png",
            "pipeline.log",
            "models/a.om",
            "quickstart/x",
            "a.om",
            "DEKR/x",
        ),
        *("data/coco/x", "build/x", "kernel_meta/x", ".venv", "x/__pycache__/y.pyc"),
    )
    git = ("git", "-C", str(ROOT))
    ignored = subprocess.run([*git, "check-ignore", *made], capture_output=True, text=True).stdout.splitlines()
    assert sorted(ignored) == sorted(made)
    tracked = subprocess.run([*git, "ls-files", "-ci", "--exclude-standard"], capture_output=True, text=True)
    assert tracked.stdout == ""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_a_checkout_on_any_system_has_line_ends_that_bash_reads():
    words = ["git", "-C", str(ROOT), "check-attr", "eol", "scripts/common.sh", "tests/fakes/atc", "DEKR_preprocess.py"]
    lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith(": eol: lf") for line in lines)
