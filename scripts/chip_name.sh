#!/usr/bin/env bash
# Print the name of this host's Ascend chip as atc's --soc_version wants it, e.g. Ascend310P3:
#   bash scripts/chip_name.sh [--device N] [--chip NAME]
# --chip, or else CHIP_NAME, overrides what npu-smi says (it is not asked then).
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
exec "$python" -E "$root/scripts/ascend.py" chip_name "$@"
