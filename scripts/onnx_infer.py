#!/usr/bin/env python3
"""Run an ONNX file over folders of tensors on the CPU; see dekr_infer/cli/onnx_infer.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("onnx_infer")

if __name__ == "__main__":
    sys.exit(main())
