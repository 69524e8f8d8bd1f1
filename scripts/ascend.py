#!/usr/bin/env python3
"""Run a command for the shell wrapper of its name beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer.launch import launch

if __name__ == "__main__":
    name = sys.argv.pop(1)
    script = "run_pipeline" if name == "pipeline" else name
    sys.argv[0] = script + ".sh"  # the usage line names what was typed
    sys.exit(launch(name))
