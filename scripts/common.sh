# shellcheck shell=bash
# Sourced by the other shell scripts: the project's root, its Python, the toolkit, and errors in one line.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # CODE MESSAGE
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

# Set `python`: the one that PYTHON names, or the project's own, or the system's.
find_python() {
    python=${PYTHON:-$root/.venv/bin/python}
    [[ -n ${PYTHON:-} || -x $python ]] || python=python3
    command -v "$python" >/dev/null ||
        fail 1 "$python: not found; run 'bash scripts/setup_venv.sh requirements.txt' or set PYTHON"
}

# Load the toolkit's environment, unless it is loaded: from ASCEND_TOOLKIT_HOME, or where CANN installs itself, old and new.
load_toolkit() {
    if [[ -n ${ASCEND_OPP_PATH:-} ]] && command -v atc >/dev/null; then
        return
    fi
    local home=${ASCEND_TOOLKIT_HOME:-} place
    local places=()
    [[ -z $home ]] || places=("$home" "$(dirname "$home")")
    for place in /usr/local/Ascend "${HOME:-/root}/Ascend"; do
        places+=("$place/ascend-toolkit" "$place/cann")
    done
    for place in "${places[@]}"; do
        if [[ -f $place/set_env.sh ]]; then
            set +eu # these scripts read variables that may not be set
            # shellcheck source=/dev/null
            source "$place/set_env.sh" >&2
            set -eu
            return
        fi
    done
}
