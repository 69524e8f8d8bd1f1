"""A linter for ONNX files that atc is to compile."""
