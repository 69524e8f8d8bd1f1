"""What the deformable convolution is called in the two dialects of the graph; needs no torch."""

OPERATOR = "DeformableConv2D"  # of Ascend, in the default domain
STANDARD_OPERATOR = "DeformConv"  # of ONNX, from opset 19 on
