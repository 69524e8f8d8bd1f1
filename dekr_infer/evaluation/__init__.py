"""COCO metrics, their plausibility, and the record of a run."""
