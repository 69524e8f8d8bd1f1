#!/usr/bin/env bash
# Run a converted model on the NPU over both folders of tensors: prep_data -> out, prep_data_flip -> out_flip.
#   bash scripts/ais_bench.sh MODEL.om [flags] [-- further ais_bench options]
# See --help for the flags. ais_bench is run by python3, or by what AIS_BENCH_PYTHON names.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
load_toolkit
exec "$python" -E "$root/scripts/ascend.py" ais_bench "$@"
