"""The tasks, one folder each, with the base class of a task and the registry of all tasks."""
