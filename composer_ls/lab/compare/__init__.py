"""Comparisons of many runs: planning and executing them, and drawing conclusions from the results."""
