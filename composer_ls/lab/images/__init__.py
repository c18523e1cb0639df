"""Loading, decoding and augmenting images, shared by all tasks with images."""
