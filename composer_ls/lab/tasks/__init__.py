"""The tasks, one folder each; what a task is; and the registry that knows them all."""
