"""Semantic segmentation: one label per pixel."""
