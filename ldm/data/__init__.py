"""Images and captions, prepared for training."""
