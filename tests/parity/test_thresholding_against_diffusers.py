"""Dynamic thresholding against diffusers' DDIMScheduler, which has no way to leave out its clip to at most [-1, 1]."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import make_denoiser
from ldm.diffusion.guidance import thresholded
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.schedule import make_schedule

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x: Tensor, t: Tensor) -> Tensor:
    return 1.5 * torch.sin(3 * x + t / 500) + 0.2 * x


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("share", [0.8, 0.995])
def test_a_chain_of_ddim_with_thresholding_is_that_of_diffusers(prediction: str, share: float) -> None:
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=KINDS[prediction],
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        thresholding=True,
        dynamic_thresholding_ratio=share,
        sample_max_value=1e9,  # its own 1 would make every threshold 1
    )
    theirs.alphas_cumprod = make_schedule(schedule_config()).alpha ** 2
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(10)
    start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in theirs.timesteps:
        # The noise is recomputed from the clipped image, as in all our samplers.
        x = theirs.step(network(x, t), t, x, use_clipped_model_output=True).prev_sample
    denoiser = thresholded(make_denoiser(network, make_prediction(prediction)), share, 1.0)
    *_, last = FirstOrder()(denoiser, start, make_schedule(schedule_config()).grid(10), torch.zeros_like)
    torch.testing.assert_close(last.x, x, rtol=1e-9, atol=1e-9)
