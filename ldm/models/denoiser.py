"""Denoising networks: the contract that U-Nets and transformers fulfil, and which third parties can implement.

A network is registered in `ldm.registry.DENOISERS` under the key of its section in a configuration.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ldm.config.section import Section, Width
from ldm.storage.networks import Network


class Added(NamedTuple):
    """SDXL's conditioning of the time embedding (Podell et al. 2023, section 2.2)."""

    text: Tensor  # pooled text, (B, P)
    # (B, 6): original height and width, top and left of the crop, target height and width, in pixels; or (B, 5) with
    # an aesthetic score in place of the target (SDXL's refiner)
    sizes: Tensor


class DenoiserConfig(Section):
    """Options that all denoising networks have. The properties describe what the network expects."""

    in_channels: Width = 4  # of the latents and of everything that is concatenated to them
    out_channels: Width = 4  # twice the channels of the latents with a learned variance
    sample_size: Width = 16  # side of the latents in training

    @property
    def multiple(self) -> int:
        """The number by which both sides of the latents must be divisible."""
        return 1

    @property
    def context_width(self) -> int | None:
        """Width D of the context (B, L, D); None: the network takes no context."""
        return None

    @property
    def num_classes(self) -> int | None:
        """Rows of the network's own table of classes; None: it has none."""
        return None

    @property
    def pooled_width(self) -> int | None:
        """Width P of the pooled text in `Added`; None: the network takes no such conditioning."""
        return None

    def added_numbers(self, pooled: int) -> int | None:
        """Count the numbers in `Added` beside pooled text of a width; None: the network does not take that width."""
        return 6 if pooled == self.pooled_width else None

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input."""
        return False

    def activations(self, backward: bool = False) -> float:
        """Estimate the values held per position of the latents in a forward pass, or for a backward pass."""
        return 4096.0 if backward else 1024.0


class DenoiserNetwork(Network):
    """Predicts the regression target from noisy latents, a time and optional conditioning.

    `forward` is split so that sampling computes what is constant once: `embed_time` for each step, `project_context`
    for each prompt.
    """

    section: ClassVar[type[Section]] = DenoiserConfig
    library: ClassVar[str] = "ldm"  # in `model_index.json`
    config: Any  # an instance of `section`

    @classmethod
    def parts(cls) -> tuple[tuple[str, str], ...]:
        """Return libraries and classes in `model_index.json` that can be loaded."""
        return tuple((cls.library, name) for name in cls.class_names())

    @abstractmethod
    def embed_time(
        self,
        t: Tensor,
        classes: Tensor | None = None,
        added: Added | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Embed times t (B,), with classes, sizes and guidance scales (B,) if the network takes them; (B, E).

        Raises:
            ValueError: if conditioning is missing, or given to a network that does not take it.
        """

    def project_context(self, context: Tensor | None = None) -> list[Any]:
        """Compute from a context (B, L, D) what all calls share, by default nothing.

        Raises:
            ValueError: if the context is missing, or given to a network that does not take it.
        """
        if context is not None:
            raise ValueError(f"{type(self).__name__} takes no context")
        return []

    @abstractmethod
    def denoise(self, latents: Tensor, embedding: Tensor, context: list[Any]) -> Tensor:
        """Predict the output (B, C', h, w) for noisy latents (B, C, h, w).

        Args:
            embedding: the result of `embed_time`, for B samples or for one.
            context: the result of `project_context`.
        """

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        classes: Tensor | None = None,
        added: Added | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predict the output (B, C', h, w) for noisy latents (B, C, h, w) at times t (B,) and a context (B, L, D)."""
        return self.denoise(latents, self.embed_time(t, classes, added, guidance), self.project_context(context))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which latents and contexts are converted."""
        return next(self.parameters()).dtype

    def example_inputs(self, side: int, tokens: int) -> dict[str, Any]:
        """Return empty arguments of `forward`: latents of `side` x `side`, a context of `tokens`, a batch of one."""
        config = self.config
        inputs: dict[str, Any] = {"latents": torch.empty(1, config.in_channels, side, side), "t": torch.empty(1)}
        if config.context_width is not None:
            inputs["context"] = torch.empty(1, tokens, config.context_width)
        if config.num_classes is not None:
            inputs["classes"] = torch.empty(1, dtype=torch.int64)
        if config.pooled_width is not None:
            inputs["added"] = Added(torch.empty(1, config.pooled_width), torch.empty(1, 6))
        if config.embeds_guidance:
            inputs["guidance"] = torch.empty(1)
        return inputs
