"""Overlays of poses on images."""
