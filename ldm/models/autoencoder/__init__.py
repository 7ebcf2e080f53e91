"""Autoencoder."""
