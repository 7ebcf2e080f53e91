"""A third-party package that adds a component of each kind to `ldm`, one file each; importing it registers them."""

from example_plugin import data_source, denoiser, loss_term, sampler, text_encoder

__all__ = ["data_source", "denoiser", "loss_term", "sampler", "text_encoder"]
