"""The scene score: compare images with the records of scenes, using a small detector."""
