"""The part of the fake that programs import; see `interface`."""
