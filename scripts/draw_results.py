#!/usr/bin/env python3
"""Draw the people of a COCO result file; see dekr_infer/cli/draw_results.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("draw_results")

if __name__ == "__main__":
    sys.exit(main())
