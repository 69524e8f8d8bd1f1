#!/usr/bin/env bash
# Convert an ONNX file for this host's Ascend chip; needs the toolkit (CANN), not the NPU itself:
#   bash scripts/atc.sh MODEL.onnx [OUTPUT] [flags] [-- further atc options]
# See --help for the flags. The toolkit's environment is loaded when it is not yet.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
load_toolkit
exec "$python" -E "$root/scripts/ascend.py" atc "$@"
