"""Images and captions, made ready for training."""
