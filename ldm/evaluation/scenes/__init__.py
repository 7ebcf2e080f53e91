"""The scene score: whether pictures show what the records of scenes say, as a small probe sees them."""
