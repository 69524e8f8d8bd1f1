"""From the trained network to an ONNX file in one of two dialects, proven before it is handed out."""
