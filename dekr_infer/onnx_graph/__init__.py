"""ONNX graph tools that both export and backends use."""
