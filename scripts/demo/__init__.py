"""Drawn people with exact labels, and a small DEKR trained on them. README.md beside this file explains both."""
