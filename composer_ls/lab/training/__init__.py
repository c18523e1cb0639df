"""From a YAML recipe to a finished run on disk."""
