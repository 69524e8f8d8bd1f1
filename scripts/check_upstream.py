#!/usr/bin/env python3
"""Compare upstream's code with ours; see dekr_infer/cli/check_upstream.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("check_upstream")

if __name__ == "__main__":
    sys.exit(main())
