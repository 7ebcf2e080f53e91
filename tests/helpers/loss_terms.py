"""Terms of the autoencoder's loss without a stage of training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ldm.config.losses import LossConfig
from ldm.registry import LOSS_TERMS
from ldm.training.losses.kl import KL
from ldm.training.losses.term import LossTerm, Output, total_loss


def loss_terms(**sections: dict[str, Any]) -> list[LossTerm]:
    """Build the terms that are named, with options."""
    config = LossConfig.model_validate(sections)
    device = SimpleNamespace(device=torch.device("cpu"))
    stage = SimpleNamespace(accelerator=device, shown=torch.zeros(1, 3, 4, 4), loss_config=config)
    return [LOSS_TERMS[name](getattr(config, name), stage) for name in LOSS_TERMS if name in sections]


def losses(
    terms: list[LossTerm],
    images: Tensor,
    reconstructions: Tensor,
    log_variance: Tensor | float = 0.0,
    kl: Tensor | None = None,
    **found: Any,
) -> dict[str, Tensor]:
    """Compute the terms for images and reconstructions (B, 3, H, W), and a KL divergence (B,)."""
    found["reconstruction"] = torch.as_tensor(log_variance, dtype=images.dtype)
    found["kl"] = None if kl is None else KL(kl, kl, kl)
    return total_loss(terms, images, Output(reconstructions, found, {}))
