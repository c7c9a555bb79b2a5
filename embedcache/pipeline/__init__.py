"""One function a verb; alone wires the rooms together."""
