"""One file a verb; alone wires the rooms together."""
