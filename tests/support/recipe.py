"""The W32 recipe's settings as plain values, and passes from bare arrays."""

from __future__ import annotations

import numpy as np

from dekr_infer.config.load import load_config
from dekr_infer.config.settings import decode_settings, refine_settings
from dekr_infer.pose.decode import DecodeSettings
from dekr_infer.pose.refine import RefineSettings
from dekr_infer.structures import Maps, Passes

DECODE: DecodeSettings = decode_settings(load_config())
_REFINE = refine_settings(load_config(None, ["TEST.MATCH_HMP", "True"]))
assert _REFINE is not None
REFINE: RefineSettings = _REFINE


def passes_of(
    heatmap: np.ndarray,
    offset: np.ndarray,
    heatmap_flip: np.ndarray | None = None,
    offset_flip: np.ndarray | None = None,
) -> Passes:
    """Return the passes of bare maps (channels, h, w)."""
    flipped = None
    if heatmap_flip is not None and offset_flip is not None:
        flipped = Maps(heatmap_flip, offset_flip, ("flipped heatmap", "flipped offset"))
    return Passes(Maps(heatmap, offset, ("heatmap", "offset")), flipped)
