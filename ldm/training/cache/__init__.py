"""Latents and text embeddings that are encoded once and read from disk."""
