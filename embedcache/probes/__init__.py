"""Light models on embeddings, NumPy at both ends; no torch, so that a laptop starts at once."""
