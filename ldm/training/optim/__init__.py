"""Parameter groups and optimizers."""
