"""Networks: what they compute, and nothing about diffusion, data or files."""
