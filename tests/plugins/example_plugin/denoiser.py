"""A denoiser: convolutions at one resolution that add the mean of the context to every position."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm.config.section import Width
from ldm.models.denoiser import Added, DenoiserConfig, DenoiserNetwork
from ldm.registry import DENOISERS


class ConvNetConfig(DenoiserConfig):
    hidden_channels: Width = 24
    context_dim: Width = 32

    @property
    def context_width(self) -> int:
        return self.context_dim


@DENOISERS.register("conv_net")
class ConvNet(DenoiserNetwork):
    section = ConvNetConfig

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__(config)
        width = config.hidden_channels
        self.time, self.text = nn.Linear(1, width), nn.Linear(config.context_dim, width)
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def embed_time(
        self, t: Tensor, classes: Tensor | None = None, added: Added | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        return self.time(t.to(self.dtype)[:, None] / 1000)

    def project_context(self, context: Tensor | None = None) -> list[Any]:
        assert context is not None
        return [self.text(context.to(self.dtype).mean(1))]

    def denoise(self, latents: Tensor, embedding: Tensor, context: list[Any]) -> Tensor:
        h = self.conv_in(latents.to(self.dtype)) + (embedding + context[0])[:, :, None, None]
        return self.conv_out(self.inner(h.relu()).relu())
