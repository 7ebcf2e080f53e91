"""Folders in the layout of diffusers."""
