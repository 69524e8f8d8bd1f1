"""Drawn people: body (pose in 3-D), looks, brush and figure (painting), backdrop, scene, people (the command)."""
