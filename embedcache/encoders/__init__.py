"""Frozen models: what they are, where their weights come from, and pictures to embeddings."""
