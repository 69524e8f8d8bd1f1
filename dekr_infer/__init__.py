"""DEKR inference: tensors, export, CPU runtime, decoding and evaluation of the bottom-up pose network."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {"export_onnx": "dekr_infer.export.export"}  # imported when first used, as some need torch


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
