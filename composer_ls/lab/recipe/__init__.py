"""Recipes: their schema, and reading them from YAML with overrides."""
