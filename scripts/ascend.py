#!/usr/bin/env python3
"""What the shell wrappers around the Ascend tools call: the first word names the tool, the rest is handed on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dekr_infer import early

early.answer_interrupts(__name__)

TOOLS = ("chip", "atc", "bench", "tune")


def main() -> int:
    """Run one tool; returns its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        print(f"error: name a tool: {', '.join(TOOLS)}", file=sys.stderr)
        return 2
    try:
        tool = importlib.import_module(f"dekr_infer.ascend.{sys.argv[1]}")
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable}: has no {error.name}; run 'bash scripts/setup_venv.sh requirements.txt'",
            file=sys.stderr,
        )
        return 1
    code: int = tool.main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
