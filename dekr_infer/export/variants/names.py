"""The names of the forms in which the deformable convolutions can be exported; see `variants`."""

SEPARATE, PADDED, GROUPED, GATHER = VARIANTS = ("separate", "padded", "grouped", "gather")
