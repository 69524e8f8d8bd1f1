"""The forms of the deformable convolutions that --deform offers."""
