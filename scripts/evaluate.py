#!/usr/bin/env python3
"""From COCO's images to COCO metrics in one process; see dekr_infer/cli/evaluate.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("evaluate")

if __name__ == "__main__":
    sys.exit(main())
