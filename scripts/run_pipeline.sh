#!/usr/bin/env bash
# The whole chain in a row, from images to COCO metrics, on an NPU or on the CPU; see dekr_infer/cli/pipeline.py, or --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
[[ " $* " != *" --backend om "* ]] || load_toolkit
exec "$python" -E "$root/scripts/ascend.py" pipeline "$@"
