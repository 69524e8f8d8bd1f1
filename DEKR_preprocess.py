#!/usr/bin/env python3
"""Turn COCO images into network tensors; see dekr_infer/cli/preprocess.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dekr_infer.launch import main_of

main = main_of("preprocess")

if __name__ == "__main__":
    sys.exit(main())
