"""A denoiser and its trained conditioning modules as one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.conditioning.conditions import Conditions

# (the `ConditionalDenoiser`, training inputs) -> tensors by the names of `Conditions`, and what is observed of them
ConditioningFn = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


def pass_on(name: str) -> ConditioningFn:
    """Return a conditioning function that passes a prepared tensor on as the input `name`."""
    return lambda network, tensor: ({name: tensor}, {})


class ConditionalDenoiser(nn.Module):
    """A denoiser and the modules that are trained together with it, as one network with one forward pass.

    Its children have the names that they have in saved states: the denoiser's (`unet`), `text_encoder`, ...
    """

    def __init__(
        self, denoiser: nn.Module, name: str, modules: Mapping[str, nn.Module], functions: Sequence[ConditioningFn]
    ) -> None:
        super().__init__()
        self.denoiser_name = name
        for child, module in {name: denoiser, **modules}.items():
            self.add_module(child, module)
        self.functions = tuple(functions)

    def forward(self, noisy: Tensor, t: Tensor, *inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict from noisy latents (B, C, h, w) at `t` (B,) and the training inputs of each conditioning.

        Returns the denoiser's output (B, C', h, w), and scalars that conditionings observe.
        """
        given: dict[str, Tensor] = {}
        observed: dict[str, Tensor] = {}
        for function, tensors in zip(self.functions, inputs, strict=True):
            found, seen = function(self, *tensors)
            given, observed = given | found, observed | seen
        conditions = Conditions(**given)
        noisy = noisy if conditions.concat is None else torch.cat([noisy, conditions.concat], dim=1)
        denoiser = getattr(self, self.denoiser_name)
        return denoiser(
            noisy, t, conditions.context, conditions.classes, conditions.added, conditions.guidance
        ), observed
