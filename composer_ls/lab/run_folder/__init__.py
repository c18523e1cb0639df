"""The folder of a run: its files, which are written atomically, and a lock against concurrent runs."""
