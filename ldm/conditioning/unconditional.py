"""Models without any conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ldm.conditioning.base import Conditioning, Sections, StoredPipeline, Subject, TrainingContext
from ldm.conditioning.conditional_denoiser import ConditioningFn
from ldm.conditioning.conditions import Conditions
from ldm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request


class Unconditional(Conditioning):
    """No inputs except latents and level."""

    name = "unconditional"
    training_options = frozenset({"sample_images"})

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        """False: models with no other conditioning have this one."""
        return False

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        return cls()

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        return cls()

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        return cls()

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        return ()

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return lambda network: ({}, {})

    def sample_options(self, context: TrainingContext) -> dict[str, Any] | None:
        count = context.settings.sample_images
        return {"num_images": count} if count else None

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        if request.guidance_scale not in (None, 1):
            raise UserError(
                f"guidance_scale is {request.guidance_scale:g}, but this model is unconditional: leave it out"
            )
        return replace(request, guidance_scale=1.0)

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        return Conditions(), None
