"""Images to input tensors, and network outputs to scored poses."""
