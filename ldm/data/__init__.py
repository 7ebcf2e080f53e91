"""Pictures and captions, made ready for training."""
