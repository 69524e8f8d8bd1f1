#!/usr/bin/env bash
# usage: bash scripts/quickstart.sh [--limit N] [--steps]
#
# Set everything up and run the whole chain: images -> tensors -> ONNX -> both passes on the CPU -> COCO metrics. With COCO
# in data/coco and the official weights in models/ it runs on those, without tensors on the disk; --limit takes only the
# first N images, --steps runs the published steps, which write their tensors. Otherwise it draws a small set of people and
# runs the published steps with the demo network. Everything it makes is in quickstart/. Finished work is not repeated, so
# an interrupted run resumes.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
cd "$root"

limit=()
stream=(--stream)
while [[ $# -gt 0 ]]; do
    case $1 in
    --limit)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail 2 "--limit expects a number of images"
        limit=(--limit "$2")
        shift 2
        ;;
    --steps)
        stream=()
        shift
        ;;
    *) fail 2 "unknown word $1; usage: bash scripts/quickstart.sh [--limit N] [--steps]" ;;
    esac
done

times=()
step() {
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || fail $? "the step '$name' failed; see its message above and run this again"
    times+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
}

step "install" bash scripts/setup_venv.sh requirements.txt
python=.venv/bin/python

annotations=data/coco/annotations/person_keypoints_val2017.json
weights=models/pose_dekr_hrnetw32_coco.pth
rescore=models/final_rescore_coco_kpt.pth
missing=()
for file in "$annotations" "$weights" "$rescore"; do
    [[ -f $file ]] || missing+=("$file")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    work=quickstart/coco
    config=(--cfg dekr_w32_coco)
    root=data/coco
    images=${limit[1]:-5000}
    printf '\n%s images are %s passes of the network: at one pass a second, as on 2 cores, %d minutes\n' \
        "$images" $((2 * images)) $((2 * images / 60 + 1))
    [[ ${#limit[@]} -gt 0 ]] || echo "--limit 100 does the first hundred only; an interrupted run resumes"
else
    stream=()
    printf '\nmissing: %s\nso this runs on drawn people, with the demo network\n' "${missing[*]}"
    work=quickstart/demo
    config=(--cfg demo)
    root=$work/data
    weights=scripts/demo/weights/pose_dekr_demo.pth
    rescore=scripts/demo/weights/rescore_demo.pth
    step "draw people" "$python" scripts/demo/people.py --output "$root" --pictures 60 --seed 2017
fi
PYTHON=$python step "pipeline" bash scripts/run_pipeline.sh --work "$work" --data "$root" --weights "$weights" \
    --rescore "$rescore" "${limit[@]}" "${stream[@]}" "${config[@]}"
step "draw results" "$python" scripts/draw_results.py --results "$work/results/keypoints_val2017_results.json" \
    --output "$work/overlays" "${config[@]}" DATASET.ROOT "$root"

printf '\n%6d s  in all\n' "$SECONDS"
printf '%s\n' "${times[@]}"
printf '\nmetrics: %s\nimages: %s\nreport: %s\n' "$work/results/metrics.json" "$work/overlays/sheet.png" "$work/report.html"
