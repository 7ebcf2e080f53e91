"""Muon (Jordan et al. 2024): momentum with all singular values set to one, for the matrices of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

# Coefficients of the odd polynomial a x + b x^3 + c x^5, which moves singular values towards one.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
AT_ONCE = 2**25  # entries of the matrices of one shape that are orthogonalized together, at most


class Muon(torch.optim.AdamW):
    """Muon for groups with `orthogonal` set, AdamW (Loshchilov and Hutter 2019) for all others.

    The step of a matrix has a root mean square of about 0.2, as AdamW's steps do, so that both use the same learning
    rate and weight decay (Liu et al. 2025, equation 4). The weights of a convolution (out, in, h, w) are a matrix
    (out, in h w). Weights that FSDP2 shards are gathered and orthogonalized in every process.
    """

    param_groups: list[dict[str, Any]]

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float, momentum: float
    ) -> None:
        super().__init__(groups, betas=betas, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # else a gradient scaler leaves skipping a step to AdamW
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
            if group["orthogonal"]:
                group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have gradients."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                shapes.setdefault((weight.shape[0], weight.numel() // weight.shape[0]), []).append(weight)
        rate, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
        for (rows, columns), weights in shapes.items():
            scale = 0.2 * max(rows, columns) ** 0.5
            for some in _split(weights, max(1, AT_ONCE // (rows * columns))):
                directions = [_gathered(self._direction(weight, group["momentum"])) for weight in some]
                steps = orthogonalized(
                    torch.stack([direction.flatten(1) for direction in directions])
                )  # (B, rows, columns)
                for weight, step in zip(some, steps, strict=True):
                    weight.mul_(decay).add_(_sharded(step.reshape(weight.shape), weight), alpha=-rate * scale)

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        """Update the momentum of a weight and return Nesterov's."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # AdamW expects it in every state
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        state["momentum"].mul_(momentum).add_(weight.grad, alpha=1 - momentum)
        return weight.grad * (1 - momentum) + state["momentum"] * momentum


def orthogonalized(matrices: Tensor) -> Tensor:
    """Set the singular values of matrices (B, m, n) to between 0.68 and 1.2, keeping the singular vectors.

    Newton-Schulz iterations (Jordan et al. 2024). All left factors of a matrix X are polynomials in X X^T, so they are
    accumulated as m x m matrices and multiply X once. This needs full float32: a rounded eigenvalue of zero grows
    twelvefold in each iteration. Singular values below 0.0015 of the Frobenius norm come out smaller.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    a, b, c = COEFFICIENTS
    product: Tensor | None = None
    with _without_tf32():
        gram = matrices @ matrices.mT
        for iteration in range(ITERATIONS):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)  # a + b X X^T + c (X X^T)^2
            product = factor if product is None else factor @ product
            if iteration < ITERATIONS - 1:
                gram = factor @ gram @ factor
        assert product is not None
        return product @ matrices


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _split(weights: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    rest = iter(weights)
    while some := list(islice(rest, size)):
        yield some


def _gathered(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded(whole: Tensor, weight: Any) -> Tensor:
    if not hasattr(weight, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, weight.device_mesh, weight.placements)
