#!/usr/bin/env bash
# The whole chain in a row, from pictures to COCO figures, on an NPU or on the CPU:
#   bash scripts/run_pipeline.sh [--backend om|onnx] [--data data/coco] [--weights FILE | --onnx FILE] [--rescore FILE]
#                                [--work .] [--limit N] [--device N] [--chip NAME] [--cfg FILE] [KEY VALUE ...]
# All it makes is below --work. A step whose results are whole, and newer than what they are made of, by the same command,
# is not done again, so a stopped run goes on where it was. --backend om (default: onnx) converts with atc for this host's
# chip, or for --chip, and runs ais_bench. --onnx takes a file that is exported already instead of the weights.
# RESCORE.VALID False does without the rescoring file.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python

backend=onnx
data=data/coco
weights=models/pose_dekr_hrnetw32_coco.pth
rescore=models/final_rescore_coco_kpt.pth
exported=
work=.
device=
chip=
limit=()
config=()
while [[ ${1:-} == --* ]]; do
    [[ $1 != --help ]] || { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit; }
    [[ -n ${2:-} ]] || fail 2 "$1 wants a value; see --help"
    case $1 in
    --backend) backend=$2 ;;
    --data) data=$2 ;;
    --weights) weights=$2 ;;
    --onnx) exported=$2 ;;
    --rescore) rescore=$2 ;;
    --work) work=$2 ;;
    --device) device=$2 ;;
    --chip) chip=$2 ;;
    --limit) limit=(--limit "$2") ;;
    --cfg) config=(--cfg "$2") ;;
    *) fail 2 "unknown flag $1; see --help" ;;
    esac
    shift 2
done
[[ $backend == om || $backend == onnx ]] || fail 2 "--backend $backend: om or onnx"

split=val2017
rescoring=True
dataset=(DATASET.ROOT "$data")
network=(TEST.MODEL_FILE "$weights")
decoding=(RESCORE.MODEL_FILE "$rescore") # what only postprocessing uses
while [[ $# -gt 1 ]]; do
    case $1 in
    DATASET.*) dataset+=("$1" "$2") ;;
    TEST.MODEL_FILE) network+=("$1" "$2") ;;
    TEST.* | RESCORE.*) decoding+=("$1" "$2") ;;
    *) network+=("$1" "$2") ;;
    esac
    case $1 in
    DATASET.TEST) split=$2 ;;
    RESCORE.VALID) rescoring=$2 ;;
    esac
    shift 2
done
decoding+=("$@")
for file in "${exported:-$weights}" "$rescore"; do
    [[ -f $file || ($file == "$rescore" && $rescoring == False) ]] ||
        fail 1 "$file: not there; put the weights there, or name them with --weights, --onnx and --rescore"
done
if [[ $backend == om ]]; then
    chip=$(bash "$root/scripts/chip_name.sh" ${chip:+--chip "$chip"} ${device:+--device "$device"})
fi

stamps=$work/pipeline
log=$work/pipeline.log
mkdir -p "$stamps" || fail 1 "$work: cannot be written; name another folder with --work"
printf '\n%(%F %T)T run_pipeline.sh --backend %s\n' -1 "$backend" >>"$log"
times=()

# What a step says of itself, beside its command:
needs=() # files and folders; anything newer in them is a reason to do it again
makes=() # files, and folders of .npy files
told=()  # the last words of its command, when they change nothing in what it makes

is_newer() { # PATH THAN [TEST...]: whether a file, or anything in a folder that passes find's tests, is newer
    [[ -e $1 && -n $(find -L "$1" "${@:3}" -newer "$2" -print -quit) ]]
}

stamp_of() { # COMMAND...: the command's words that matter, and what the result folders hold
    local folder
    printf '%q ' "${@:1:$#-${#told[@]}}"
    for folder in "${makes[@]}"; do
        [[ ! -d $folder ]] || find "$folder/" -maxdepth 1 -name '*.npy' -printf '%f %s\n' | LC_ALL=C sort | cksum
    done
}

is_done() { # NAME COMMAND...: whether the step's stamp tells of this command and these results, and no need is newer
    local file stamp=$stamps/$1
    [[ -f $stamp ]] || return 1
    for file in "${makes[@]}"; do
        [[ -e $file ]] || return 1
    done
    [[ $(<"$stamp") == "$(stamp_of "${@:2}")" ]] || return 1
    for file in "${needs[@]}"; do
        ! is_newer "$file" "$stamp" || return 1
    done
}

forget_tensors() { # PATH...: empty the tensor folders when any of these pictures or files is newer than they may be
    local file began=$stamps/preprocess.began
    [[ -f $began ]] || return 0 # none of ours
    for file in "$@"; do
        is_newer "$file" "$began" -type f || continue
        find "$work/prep_data/" "$work/prep_data_flip/" -maxdepth 1 -name '*.npy' -delete 2>/dev/null || true
        rm -f "$work/prep_data_record.json" "$work/prep_data_flip_record.json"
    done
}

is_of_another_graph() { # RECORD: whether the runner's record of its outputs, if there is one, names another graph
    local sum
    [[ -f $1 ]] || return
    sum=$(sha256sum <"$graph")
    [[ $(head -n 1 "$1") != *"${sum%% *}"* ]]
}

pipes=$(mktemp -d)
mkfifo "$pipes/out" "$pipes/err"
child=
stopped=
trap 'rm -rf "$pipes"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

stop() { # CODE: ask the step that runs to end; once it has cleaned up, the run ends with this code
    stopped=$1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

step() { # NAME COMMAND...: what it `makes` of what it `needs`
    local name=$1 began=$SECONDS start=$stamps/$1.began code=0
    shift
    if is_done "$name" "$@"; then
        printf '== %s: done before\n' "$name" | tee -i -a "$log"
        times+=("$(printf '%8s  %s' "-" "$name")")
        return
    fi
    printf '== %s\n' "$name" | tee -i -a "$log"
    rm -f "$stamps/$name"
    : >"$start"
    "$@" >"$pipes/out" 2>"$pipes/err" & # so that a signal is heard while it runs
    child=$!
    tee -i -a "$log" <"$pipes/out" &
    tee -i -a "$log" <"$pipes/err" >&2 &
    [[ -z $stopped ]] || stop "$stopped" # it came before `child` was known
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal cut the waiting short
        wait "$child" || code=$?
    done
    child=
    wait # for the copies of its output
    [[ -z $stopped ]] || code=$stopped
    if [[ $code -ne 0 ]]; then
        printf "stopped at the step '%s'; run the same command again to go on from here; log: %s\n" "$name" "$log" >&2
        exit "$code"
    fi
    stamp_of "$@" >"$stamps/$name"
    touch -r "$start" "$stamps/$name" # what changed while the step ran is newer
    times+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
}

graph=${exported:-$work/dekr_bs1.onnx}
model=$work/dekr_bs1.om
needs=("$data"/annotations/*.json "$data/images" "${config[@]:1}")
makes=("$work/prep_data" "$work/prep_data_flip")
told=("${network[@]}" "${decoding[@]}")
forget_tensors "$data/annotations/person_keypoints_$split.json" "$data/images/$split" "$data/images/$split.zip"
step preprocess "$python" "$root/DEKR_preprocess.py" --output "$work/prep_data" --output_flip "$work/prep_data_flip" \
    "${limit[@]}" "${config[@]}" "${dataset[@]}" "${told[@]}"
if [[ -z $exported ]]; then
    needs=("$weights" "${config[@]:1}")
    makes=("$graph")
    told=("${dataset[@]}" "${decoding[@]}")
    step export "$python" "$root/DEKR_pth2onnx.py" --output "$graph" "${config[@]}" "${network[@]}" "${told[@]}"
fi
told=()
if [[ $backend == om ]]; then
    needs=("$graph")
    makes=("$model")
    step convert bash "$root/scripts/atc.sh" "$graph" "$model" --chip "$chip"
fi
for pass in "" _flip; do
    makes=("$work/out$pass" "$work/out${pass}_summary.json")
    if [[ $backend == om ]]; then
        needs=("$model" "$stamps/preprocess")
        step "infer$pass" bash "$root/scripts/ais_bench.sh" "$model" --input "$work/prep_data$pass" --output "$work" \
            --output_dirname "out$pass" --device "${device:-0}"
    else
        needs=("$graph" "$stamps/preprocess")
        told=()
        ! is_of_another_graph "$work/out${pass}_record.jsonl" || told=(--overwrite)
        step "infer$pass" "$python" "$root/scripts/onnx_infer.py" --model "$graph" --input "$work/prep_data$pass" \
            --output "$work" --output_dirname "out$pass" "${told[@]}"
    fi
done
told=()
needs=("$stamps/infer" "$stamps/infer_flip" "$rescore" "$data"/annotations/*.json "${config[@]:1}")
makes=("$work/results/metrics.json")
step postprocess "$python" "$root/DEKR_postprocess.py" --dump_dir "$work/out" --dump_dir_flip "$work/out_flip" \
    --output "$work/results" ${limit[0]:+--allow_missing} "${config[@]}" "${dataset[@]}" "${network[@]}" "${decoding[@]}"

{
    printf '\n%s\n' "backend $backend, $SECONDS s in all"
    printf '%s\n' "${times[@]}"
    printf 'figures: %s\nlog: %s\n' "$work/results/metrics.json" "$log"
} | tee -i -a "$log"
