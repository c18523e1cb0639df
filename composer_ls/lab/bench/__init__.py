"""The loss against its peers: what a forward and backward pass costs in time and memory."""
