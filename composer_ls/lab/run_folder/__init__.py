"""The folder that a run leaves: its files, written whole or not at all, and who is working in it."""
