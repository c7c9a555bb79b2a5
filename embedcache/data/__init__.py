"""Manifest, images, embeddings, cohorts, folds, predictions: what the other rooms pass on."""
