"""The speed of each stage, next to the reference's way of working and to the machine's limits. See README.md."""
