"""Inputs of a denoiser in training that is conditioned on text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ldm.data.loader import Batch


class TextInputs:
    """Conditioning function: run the trained text encoders, concatenate contexts, add pooled text and sizes."""

    def __init__(self, frozen: Mapping[str, bool], added: bool) -> None:
        self.frozen, self.added = frozen, added

    def __call__(self, network: Any, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        waiting, contexts = list(inputs), []
        observed: dict[str, Tensor] = {}
        pooled: Tensor | None = None
        for name, frozen in self.frozen.items():
            if frozen:
                contexts.append(waiting.pop(0))
                pooled = waiting.pop(0) if self.added and name == list(self.frozen)[-1] else None
                continue
            ids, mask = waiting.pop(0), waiting.pop(0)
            encoded = getattr(network, name)(ids, mask)
            contexts.append(encoded.context)
            pooled = encoded.pooled
            if network.training:
                observed |= observe_contexts(encoded.context, ids)
        given = {"context": contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=-1)}
        if self.added:
            assert pooled is not None  # `denoiser_inputs` checked it
            given |= {"pooled": pooled, "sizes": waiting.pop(0)}
        return given, observed


@torch.no_grad()
def observe_contexts(context: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Measure how far contexts (B, L, D) of token ids (B, L) differ: variance over the batch by mean square.

    Also return the share of captions that differ from the first one, because equal captions have equal contexts. Both
    are scalars.
    """
    spread_of = (context.float() - context.float().mean(0)).square().mean() / context.float().square().mean()
    return {"context_spread": spread_of, "captions_that_differ": (ids != ids[:1]).any(1).float().mean()}


def sizes_and_crops(batch: Batch) -> Tensor:
    """Return original height and width, crop top and left, target height and width of each image, (B, 6), in pixels."""
    assert batch.images is not None
    assert batch.original_sizes is not None
    assert batch.crops is not None
    height, width = batch.images.shape[-2:]
    target = torch.tensor([[height, width]]).expand(len(batch.original_sizes), -1)
    return torch.cat([batch.original_sizes, batch.crops, target], dim=1).float()
