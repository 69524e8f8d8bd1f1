#!/usr/bin/env bash
# Make .venv in the project's root, or bring it up to date, from a requirements file:
#   bash scripts/setup_venv.sh requirements.txt
# PYTHON names another interpreter than python3. Does nothing when all is there.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
requirements=$root/${1:?name a requirements file}
python=${PYTHON:-python3}
venv=$root/.venv

command -v "$python" >/dev/null || fail 1 "$python: not found; install Python 3.10 to 3.13 or set PYTHON"
if [[ ! -x $venv/bin/python ]]; then
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        fail 1 "$python is $("$python" -V); Python 3.10 to 3.13 is needed, set PYTHON to one"
    "$python" -m venv "$venv" || fail 1 "no virtual environment could be made; on Debian: apt install python3-venv"
fi
installed=$venv/installed-$(basename "$requirements")
wanted=$(cat "$root"/requirements*.txt)
if [[ ! -f $installed || $(<"$installed") != "$wanted" ]]; then
    echo "installing $(basename "$requirements") into .venv ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail 1 "pip could not install $(basename "$requirements"); see its message above"
    printf '%s\n' "$wanted" >"$installed"
fi
