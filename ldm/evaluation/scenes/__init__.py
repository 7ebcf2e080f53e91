"""The scene score: whether images show what the records of scenes say, as a small probe sees them."""
