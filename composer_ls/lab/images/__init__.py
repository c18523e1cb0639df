"""Images on their way to a network, for all tasks that have images."""
