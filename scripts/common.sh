# shellcheck shell=bash
# Sourced by the wrappers: the project's root, its Python, and errors in one line. PYTHON names another interpreter.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
command -v "$python" >/dev/null || fail 1 "$python: not found; run 'bash scripts/setup_venv.sh requirements.txt' or set PYTHON"
