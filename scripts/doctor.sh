#!/usr/bin/env bash
# One page on this host: what is there for the whole chain, what is missing, and what to do about it.
#   bash scripts/doctor.sh [--backend om|onnx] [--data data/coco] [--models models]
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
load_toolkit
exec "$python" "$root/scripts/doctor.py" "$@"
