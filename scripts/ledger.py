#!/usr/bin/env python3
"""Where AP goes, choice by choice; see dekr_infer/cli/ledger.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import main_of

main = main_of("ledger")

if __name__ == "__main__":
    sys.exit(main())
