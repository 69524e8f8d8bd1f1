"""Tell random and demo weights from trained ones, without torch; commands that show people or metrics name the kind."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from dekr_infer.storage.atomic import sha256

RANDOM, DEMO, TRAINED = KINDS = ("random", "demo", "trained")  # the least trained first
NOTES = {RANDOM: "random weights: people found mean nothing", DEMO: "demo network: it only knows drawn people"}
MARK = "dekr_infer: random weights"
DEMO_FILES = {  # SHA-256 of the shipped files in scripts/demo/weights
    "c443085ac955b3edbffe77ee4392853f3b327624d0912961d89facfa5bd5eb90",
    "463e6e72bfc11726dd325a773749674c0d63fb6d56d68e987fef71d93b387219",
}
LARGEST_INDEX = 1 << 24  # bytes: the list of a checkpoint's tensors has some 300 kB


def mark_random(state: Any) -> None:
    """Mark a state dict as random, in torch's own metadata, which loading keeps and strict loading ignores."""
    state._metadata[""]["weights"] = MARK


def weights_kind(path: Path) -> str:
    """Return the kind of a checkpoint's weights, one of `KINDS`: `trained` for every file without a mark.

    Raises:
        DekrError: the file cannot be read.
    """
    if sha256(path) in DEMO_FILES:
        return DEMO
    try:
        with zipfile.ZipFile(path) as file:
            indices = [entry for entry in file.infolist() if entry.filename.endswith("/data.pkl")]
            marked = any(MARK.encode() in file.read(e) for e in indices if e.file_size < LARGEST_INDEX)
    except Exception:  # torch's older form, or damaged; zipfile raises many kinds
        return TRAINED
    return RANDOM if marked else TRAINED


def least_trained(*kinds: str | None) -> str:
    """Return the least trained of some kinds; unknown ones count as trained.

    >>> least_trained("trained", None, "demo")
    'demo'
    """
    return next((kind for kind in KINDS if kind in kinds), TRAINED)
