#!/usr/bin/env python3
"""Write checkpoints with random weights; see dekr_infer/cli/random_checkpoint.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("random_checkpoint")

if __name__ == "__main__":
    sys.exit(main())
