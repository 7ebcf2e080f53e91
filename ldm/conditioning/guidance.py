"""Conditioning on the guidance scale, of models distilled from guided ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ldm.conditioning.base import Conditioning, Meta, Sections, StoredPipeline, Subject, TrainingContext
from ldm.conditioning.conditional_denoiser import ConditioningFn, pass_on
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.text.composition import Composed
from ldm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request

ORIGINAL_STEPS = 50  # of the solver that latent consistency models were distilled from
DISTILLED_SCALE, DISTILLED_STEPS = 8.5, 4  # of requests that leave them open, as in diffusers' pipeline


class GuidanceEmbedding(Conditioning):
    """The guidance scale as an input of the denoiser, in place of classifier-free guidance (Meng et al. 2023).

    Latent consistency models (Luo et al. 2023) have it. They sample with few steps of `lcm`.
    """

    name = "guidance"
    replaces_guidance = True

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return bool(getattr(sections.get("denoiser"), "embeds_guidance", False))

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        return cls() if stored.denoiser.embeds_guidance else None

    # --- training

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        raise UserError(
            f"{config.denoiser_name}.time_cond_proj_dim is set, but the guidance scale is learned by distillation, "
            "which is not supported: set it to null"
        )

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        return cls()

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        raise NotImplementedError  # `check_training` rejects it

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return pass_on("guidance")

    @classmethod
    def meta(cls, config: Config) -> Meta:
        return Meta((torch.zeros(1),))

    # --- inference

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        for name in ("negative_prompt", "negative_class", "guidance_rescale", "guidance_interval"):
            if getattr(request, name):
                raise UserError(f"this model takes the guidance scale as an input: leave {name} out")
        if any(isinstance(prompt, Composed) for prompt in request.prompts):
            raise UserError("this model takes the guidance scale as an input: leave AND out of the prompt")
        scale = DISTILLED_SCALE if request.guidance_scale is None else request.guidance_scale
        request = replace(request, guidance_scale=scale, sampler=request.sampler or "lcm")
        if request.timesteps is not None or request.spacing is not None or request.sampler != "lcm":
            return request
        schedule: Any = pipeline.diffusion.schedule
        steps = request.num_inference_steps or DISTILLED_STEPS
        if schedule.num_train_timesteps % ORIGINAL_STEPS or steps > ORIGINAL_STEPS:
            return replace(request, num_inference_steps=steps)
        stride = schedule.num_train_timesteps // ORIGINAL_STEPS  # as diffusers' LCMScheduler selects timesteps
        timesteps = [(ORIGINAL_STEPS - ORIGINAL_STEPS * i // steps) * stride - 1 for i in range(steps)]
        return replace(request, num_inference_steps=steps, timesteps=tuple(map(float, timesteps)))

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        assert request.guidance_scale is not None  # `resolve` fills it in
        scale = torch.full((len(subjects),), request.guidance_scale, device=pipeline.device)
        return Conditions(guidance=scale), None
