#!/usr/bin/env python3
"""Run one of the Ascend commands; the shell wrappers beside this file call it with the command's name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import launch

if __name__ == "__main__":
    sys.exit(launch(sys.argv.pop(1)))
