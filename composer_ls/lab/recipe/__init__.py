"""Recipes: their schema, and how they are read from YAML with overrides."""
