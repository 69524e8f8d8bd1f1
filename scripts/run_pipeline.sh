#!/usr/bin/env bash
# The whole chain in a row, from pictures to COCO figures, on an NPU or on the CPU:
#   bash scripts/run_pipeline.sh [--backend om|onnx] [--data data/coco] [--weights FILE | --onnx FILE] [--rescore FILE]
#                                [--work .] [--limit N] [--device N] [--cfg FILE] [KEY VALUE ...]
# All it makes is below --work. A step whose results are newer than what they are made of, by the same command, is not
# done again, so a stopped run goes on where it was. --backend om (default: onnx) converts with atc and runs ais_bench.
# --onnx takes a file that is exported already instead of the weights.
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
device=0
limit=()
config=()
while [[ ${1:-} == --* ]]; do
    [[ $1 != --help ]] || { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit; }
    [[ -n ${2:-} ]] || fail 2 "$1 wants a value; see --help"
    case $1 in
    --backend) backend=$2 ;;
    --data) data=$2 ;;
    --weights) weights=$2 ;;
    --onnx) exported=$2 ;;
    --rescore) rescore=$2 ;;
    --work) work=$2 ;;
    --device) device=$2 ;;
    --limit) limit=(--limit "$2") ;;
    --cfg) config=(--cfg "$2") ;;
    *) fail 2 "unknown flag $1; see --help" ;;
    esac
    shift 2
done
[[ $backend == om || $backend == onnx ]] || fail 2 "--backend $backend: om or onnx"
for file in "${exported:-$weights}" "$rescore"; do
    [[ -f $file ]] || fail 1 "$file: not there; put the weights there, or name them with --weights, --onnx and --rescore"
done
pairs=(DATASET.ROOT "$data" TEST.MODEL_FILE "$weights" RESCORE.MODEL_FILE "$rescore" "$@")

stamps=$work/pipeline
log=$work/pipeline.log
mkdir -p "$stamps" || fail 1 "$work: cannot be written; name another folder with --work"
printf '\n%(%F %T)T run_pipeline.sh --backend %s\n' -1 "$backend" >>"$log"
times=()

is_done() { # NAME COMMAND: whether the step's stamp tells of this command, and nothing it needs is newer
    local file
    [[ -f $stamps/$1 && $(<"$stamps/$1") == "$2" ]] || return 1
    for file in "${makes[@]}"; do
        [[ -e $file ]] || return 1
    done
    for file in "${needs[@]}"; do
        [[ ! $file -nt $stamps/$1 ]] || return 1
    done
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
    local name=$1 began=$SECONDS command code=0
    shift
    command=$(printf '%q ' "$@")
    if is_done "$name" "$command"; then
        printf '== %s: done before\n' "$name" | tee -i -a "$log"
        times+=("$(printf '%8s  %s' "-" "$name")")
        return
    fi
    printf '== %s\n' "$name" | tee -i -a "$log"
    rm -f "$stamps/$name"
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
    printf '%s\n' "$command" >"$stamps/$name"
    times+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
}

graph=${exported:-$work/dekr_bs1.onnx}
model=$work/dekr_bs1.om
needs=("$data"/annotations/*.json "$data"/images/*)
makes=("$work/prep_data" "$work/prep_data_flip")
step preprocess "$python" "$root/DEKR_preprocess.py" --output "$work/prep_data" --output_flip "$work/prep_data_flip" \
    "${limit[@]}" "${config[@]}" "${pairs[@]}"
if [[ -z $exported ]]; then
    needs=("$weights" "${config[@]:1}")
    makes=("$graph")
    step export "$python" "$root/DEKR_pth2onnx.py" --output "$graph" "${config[@]}" "${pairs[@]}"
fi
if [[ $backend == om ]]; then
    needs=("$graph")
    makes=("$model")
    step convert bash "$root/scripts/atc.sh" "$graph" "$model"
fi
for pass in "" _flip; do
    makes=("$work/out$pass" "$work/out${pass}_summary.json")
    if [[ $backend == om ]]; then
        needs=("$model" "$stamps/preprocess")
        step "infer$pass" bash "$root/scripts/ais_bench.sh" "$model" --input "$work/prep_data$pass" --output "$work" \
            --output_dirname "out$pass" --device "$device"
    else
        needs=("$graph" "$stamps/preprocess")
        step "infer$pass" "$python" "$root/scripts/onnx_infer.py" --model "$graph" --input "$work/prep_data$pass" \
            --output "$work" --output_dirname "out$pass"
    fi
done
needs=("$stamps/infer" "$stamps/infer_flip" "$rescore" "$data"/annotations/*.json)
makes=("$work/results/metrics.json")
step postprocess "$python" "$root/DEKR_postprocess.py" --dump_dir "$work/out" --dump_dir_flip "$work/out_flip" \
    --output "$work/results" ${limit[0]:+--allow_missing} "${config[@]}" "${pairs[@]}"

{
    printf '\n%s\n' "backend $backend, $SECONDS s in all"
    printf '%s\n' "${times[@]}"
    printf 'figures: %s\nlog: %s\n' "$work/results/metrics.json" "$log"
} | tee -i -a "$log"
