#!/usr/bin/env python3
"""Find the people in images and videos; see dekr_infer/cli/predict.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("predict")

if __name__ == "__main__":
    sys.exit(main())
