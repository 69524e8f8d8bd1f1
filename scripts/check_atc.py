#!/usr/bin/env python3
"""Check an ONNX file for what atc refuses; see dekr_infer/cli/check_atc.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("check_atc")

if __name__ == "__main__":
    sys.exit(main())
