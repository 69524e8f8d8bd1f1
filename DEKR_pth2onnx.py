#!/usr/bin/env python3
"""Export a trained checkpoint to ONNX; see dekr_infer/cli/export.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dekr_infer.launch import main_of

main = main_of("export")

if __name__ == "__main__":
    sys.exit(main())
