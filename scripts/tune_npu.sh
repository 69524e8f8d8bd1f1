#!/usr/bin/env bash
# Find out on this NPU which of the four export forms (--deform) of a checkpoint is the fastest:
#   bash scripts/tune_npu.sh [flags] TEST.MODEL_FILE models/pose_dekr_hrnetw32_coco.pth [-- further atc options]
# See --help for the flags. It needs the toolkit (atc), ais_bench and an NPU; what is done is not done again.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
load_toolkit
exec "$python" -E "$root/scripts/ascend.py" tune_npu "$@"
