"""The deformable convolution's names, which are all that the pre-flight of a conversion needs of the dialects."""

OPERATOR = "DeformableConv2D"  # of Ascend, in the default domain
STANDARD_OPERATOR = "DeformConv"  # of ONNX, from opset 19 on
