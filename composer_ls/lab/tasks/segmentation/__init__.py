"""Segmentation: one label for each pixel."""
