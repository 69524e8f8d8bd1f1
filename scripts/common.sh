# shellcheck shell=bash
# Sourced by the other shell scripts: the project's root, its Python, the toolkit, and errors in one line.
root=$(unset CDPATH && cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)

fail() { # CODE MESSAGE
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

# With --help, print the comment at the head of the script and end.
help_if_asked() { # WORDS...
    if [[ ${1:-} == --help || ${1:-} == -h ]]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit
    fi
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
    [[ -z $home ]] || places=("$home" "$(dirname -- "$home")")
    for place in /usr/local/Ascend "${HOME:-/root}/Ascend"; do
        places+=("$place/ascend-toolkit" "$place/cann")
    done
    for place in "${places[@]}"; do
        if [[ -f $place/set_env.sh ]]; then
            export DEKR_SET_ENV=$place/set_env.sh # for the message when it brings no atc
            take_environment "$DEKR_SET_ENV"
            return
        fi
    done
}

# Take over the variables that a script exports. It runs in a shell of its own: it may end that, go to another folder, set
# variables and options, or hold errors. Its exit code says little: many of them end with a test that did not hold.
take_environment() { # SCRIPT
    local __pair __code=0
    local __pairs=()
    # shellcheck disable=SC2016
    mapfile -d '' -t __pairs < <(exec timeout -k 5 60 bash -c 'unset CDPATH; source "$0" >&2; command -p env -0' "$1")
    wait "$!" || __code=$?
    if [[ ${#__pairs[@]} -eq 0 && $__code -eq 124 ]]; then
        printf 'warning: %s: did not end in 60 s; the toolkit is not loaded\n' "$1" >&2
    elif [[ ${#__pairs[@]} -eq 0 ]]; then
        printf 'warning: %s: ended its shell with exit code %s; the toolkit is not loaded\n' "$1" "$__code" >&2
    fi
    for __pair in "${__pairs[@]}"; do
        case ${__pair%%=*} in
        root | python | PYTHONHOME | PWD | OLDPWD | SHLVL | _ | BASH* | SHELLOPTS) ;;
        *) export "${__pair?}" 2>/dev/null || true ;; # names that bash does not take stay as they are
        esac
    done
}
