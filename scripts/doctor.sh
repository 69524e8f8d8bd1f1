#!/usr/bin/env bash
# One page on this host: what is present for the whole chain, what is missing, and the remedy.
#   bash scripts/doctor.sh [--backend om|onnx] [--data data/coco] [--models models]
# See --help for the flags.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
load_toolkit
exec "$python" -E "$root/scripts/ascend.py" doctor "$@"
