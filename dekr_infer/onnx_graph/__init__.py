"""Rewrite ONNX graphs: dialects, simplification, and the order of sums that suits a CPU; below export and backends."""

import logging

logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # its warnings of damaged files would reach stderr
