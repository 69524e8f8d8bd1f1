#!/usr/bin/env bash
# usage: bash scripts/setup_venv.sh [requirements.txt]
#
# Make .venv in the project's root, or bring it up to date, from a requirements file. Nothing happens when it is complete.
# A .venv whose Python is not supported, or not the version of PYTHON where that is set, is made again.
#   PYTHON       the interpreter (default: python3)
#   TORCH_INDEX  a package index with CPU builds of torch, asked for 3 seconds (default: PyTorch's own; empty: never)
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
requirements=$root/${1:-requirements.txt}
python=${PYTHON:-python3}
venv=$root/.venv
torch_index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
[[ -f $requirements ]] || fail 2 "$requirements: not found; name requirements.txt or requirements-dev.txt"

check() { # PYTHON: print what is wrong with its version
    "$1" -c 'import sys; sys.path.insert(0, sys.argv[1]); import dekr_infer.launch as launch; print(launch.python_error())' \
        "$root" 2>/dev/null || echo "$1: cannot run $root/dekr_infer/launch.py; Python 3.11 to 3.13 is needed"
}

version() { # PYTHON
    "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true
}

is_usable() { # whether .venv can stay
    [[ -x $venv/bin/python && -z $(check "$venv/bin/python") ]] &&
        [[ -z ${PYTHON:-} || $(version "$PYTHON") == "$(version "$venv/bin/python")" ]]
}

if ! is_usable; then
    [[ ! -e $venv || -f $venv/pyvenv.cfg || -z $(ls -A "$venv") ]] ||
        fail 1 "$venv: is not a virtual environment; move it away and run this again"
    command -v "$python" >/dev/null || fail 1 "$python: not found; install Python 3.11 to 3.13, or set PYTHON to one"
    problem=$(check "$python")
    [[ -z $problem ]] || fail 1 "$problem; install one, and set PYTHON to it"
    [[ ! -e $venv ]] || echo "making .venv again, with $("$python" -V) ..."
    "$python" -m venv --clear "$venv" ||
        fail 1 "no virtual environment could be made; on Debian: apt install python3-venv"
fi

pip() {
    "$venv/bin/python" -m pip "$@"
}

# Install the CPU build of torch where an index has it: 1.5 instead of 5 GB. Whatever fails here, pip's own choice follows.
install_cpu_torch() {
    local torch
    torch=$(sed -n 's/^\(torch[=<>~][^ #]*\).*/\1/p' "$root/requirements.txt")
    if [[ -n $torch_index && -n $torch ]] && ! pip show --quiet torch 2>/dev/null &&
        timeout 3 "$venv/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/")' \
            "$torch_index" 2>/dev/null; then
        pip install --quiet --disable-pip-version-check --no-deps --index-url "$torch_index" "$torch" ||
            echo "warning: $torch_index: brought no $torch; pip's own index is used" >&2
    fi
}

installed=$venv/installed-$(basename "$requirements")
wanted=$(cat "$root"/requirements*.txt)
if [[ ! -f $installed || $(<"$installed") != "$wanted" ]]; then
    echo "installing $(basename "$requirements") into .venv ..."
    install_cpu_torch
    pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail 1 "pip could not install $(basename "$requirements"); see its message above"
    printf '%s\n' "$wanted" >"$installed"
fi
