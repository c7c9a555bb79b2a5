"""Training that moves the encoder: recipe, regimes, batches, epochs, and their survival."""
