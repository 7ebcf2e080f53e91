"""Metrics of image quality."""

# Fields of a request that `ldm evaluate` takes as options and reports.
SAMPLING = ("guidance_scale", "quality", "num_inference_steps", "sampler", "eta", "seed")
