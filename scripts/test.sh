#!/usr/bin/env bash
# usage: bash scripts/test.sh [PYTEST_WORDS...]
#
# Set everything up and run the checks: ruff, codespell, mypy, and the test suite with as many workers as there are cores.
# Further words go to pytest, for example `tests/pose -x`; `-n 0` runs the tests in one process.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
cd "$root"
bash scripts/setup_venv.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/codespell
.venv/bin/mypy
exec .venv/bin/python -m pytest -n auto --dist loadscope --no-loadscope-reorder "$@"
