"""Rewrite ONNX graphs: dialects, simplification, and the order of sums that suits a CPU; below export and backends."""
