"""Every fault: the exit code, one line that names file and remedy, nothing half-written, and a clean run afterwards.

The corrected run must leave the same bytes as a run that nothing disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.fault_cases import Fault
from tests.robustness.fault_cases.export import EXPORT_FAULTS
from tests.robustness.fault_cases.infer import INFER_FAULTS
from tests.robustness.fault_cases.postprocess import POSTPROCESS_FAULTS
from tests.robustness.fault_cases.preprocess import PREPROCESS_FAULTS
from tests.support import corruption as spoil
from tests.support import counts
from tests.support.commands import assert_refused
from tests.support.folders import contents
from tests.support.tiny_models import Tiny
from tests.support.workspace import EXPORT, INFER, POSTPROCESS, PREPROCESS, Place, undisturbed_run

STAGES = {
    PREPROCESS: PREPROCESS_FAULTS,
    EXPORT: EXPORT_FAULTS,
    INFER: INFER_FAULTS,
    POSTPROCESS: POSTPROCESS_FAULTS,
}
OF_STAGE = {  # which outputs are whose
    PREPROCESS: ("prep_data",),
    EXPORT: ("net.onnx",),
    INFER: ("out",),
    POSTPROCESS: ("results",),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """The undisturbed run: all inputs in `in`, all outputs in `w`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed_run(folder, (PREPROCESS, INFER, POSTPROCESS, EXPORT), checkpoint=tiny.checkpoint)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Iterator[Place]:
    made = Place(tmp_path, request.param, source / "in")
    yield made
    spoil.unmount(made.outputs)


def undisturbed(source: Path, stage: str) -> dict[str, bytes]:
    """What the stage writes when all is well."""
    return {name: data for name, data in contents(source / "w").items() if name.startswith(OF_STAGE[stage])}


ROWS = [(stage, fault) for stage, faults in STAGES.items() for fault in faults]


@pytest.mark.parametrize(
    ("place", "fault"), ROWS, indirect=["place"], ids=[f"{stage}: {fault.name}" for stage, fault in ROWS]
)
def test_a_fault_is_one_line_loses_nothing_and_is_mended_by_a_second_run(place: Place, fault: Fault, source: Path):
    wanted = undisturbed(source, place.stage)
    fault.spoil(place)
    before = place.written()
    ran = place.run(*fault.flags, pairs=fault.pairs, real=fault.real)
    assert_refused(ran, fault.code, *fault.says)
    assert "; " in ran.err or fault.code == 2, "a line without a remedy"
    for name, data in place.written().items():
        if name.endswith("_record.jsonl") and name not in before:
            continue  # names this run's annotation file, which may be the fault
        assert before.get(name, wanted.get(name)) == data, f"{name} is neither as it was nor as it should be"
    assert not list(place.folder.rglob("sprung")), "code in a file was run"
    counts.DONE["faults"] += 1
    if not fault.again:
        assert place.written() == before, "something was written, so a corrected run would not be a first one"
    else:
        fault.mend(place)
        place.restore()
        again = place.run()
        assert again.code == 0, again
        assert place.written() == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_no_row_occurs_twice(stage: str):
    names = [fault.name for fault in STAGES[stage]]
    assert len(set(names)) == len(names)
