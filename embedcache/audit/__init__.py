"""Faults of a set of images that make a score wrong: found in arrays and tables, on no disk."""
