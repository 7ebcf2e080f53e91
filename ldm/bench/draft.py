"""An image of the built-in model, exact and as a draft."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.bench.workload import Run, Workload
from ldm.generation import TextToImage

PROMPT = "a corgi playing a trumpet"


def draft(against: bool) -> Workload:
    """Generate one guided image from its prompt: ours is a draft, and the side `theirs` is our exact image.

    The row's ratio is the speedup of `--quality draft`, and its error the difference of the images' bytes.
    """
    pipe = TextToImage.from_pretrained()

    def generation(quality: str) -> Run:
        def run() -> Tensor:
            (image,) = pipe(PROMPT, quality=quality)
            return torch.from_numpy(np.array(image))

        return run

    return Workload(ours=generation("draft"), theirs=generation("exact"))
