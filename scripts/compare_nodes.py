#!/usr/bin/env python3
"""Two runs of a network node by node; see dekr_infer/cli/compare_nodes.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("compare_nodes")

if __name__ == "__main__":
    sys.exit(main())
