"""Data sets and images: annotations, decoding, sources."""
