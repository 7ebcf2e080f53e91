"""What images are conditioned on: text, classes, images, maps."""
