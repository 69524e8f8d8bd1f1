"""DEKR inference: tensors, export, CPU runtime, decoding and evaluation of the bottom-up pose network."""

__version__ = "0.1.0"
