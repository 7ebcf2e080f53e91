"""A whole image of the built-in model, exact and as a draft."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.bench.workload import Run, Workload
from ldm.generation import TextToImage

PROMPT = "a corgi playing a trumpet"


def draft(against: bool) -> Workload:
    """One guided image from its prompt to its pixels: ours is a draft, in the place of theirs stands our exact one.

    So the row's ratio is what `--quality draft` gains, whether or not diffusers is there, and its error how far the
    image's bytes have moved. docs/presets.md has what that costs in FID.
    """
    pipe = TextToImage.from_pretrained()

    def drawing(quality: str) -> Run:
        def run() -> Tensor:
            (image,) = pipe(PROMPT, quality=quality)
            return torch.from_numpy(np.array(image))

        return run

    return Workload(ours=drawing("draft"), theirs=drawing("exact"))
