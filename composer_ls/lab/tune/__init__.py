"""Tuning: which smoothing, and which other values, suit a recipe best."""
