"""DEKR inference: from images to people, from a checkpoint to a proven ONNX file, from a data set to COCO metrics.

>>> sorted(_PUBLIC)
['Detector', 'People', 'evaluate', 'export_onnx']
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {  # imported when first used: some need torch, which takes seconds
    "Detector": "dekr_infer.detector",
    "People": "dekr_infer.structures",
    "evaluate": "dekr_infer.evaluation.evaluate",
    "export_onnx": "dekr_infer.export.export",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
