"""Distances between two sets of pictures, each known by its features (N, D)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURHOOD = 3


def fid(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Frechet distance of the normal distributions fitted to both (Heusel et al. 2017), through torchmetrics.

    Its estimate is too high for few pictures, the more so for few pictures a dimension: compare equal numbers only.
    """
    if min(len(features), len(reference)) < 2:
        raise UserError("FID needs at least two pictures on each side")
    metric = _torchmetrics().image.fid.FrechetInceptionDistance(_Given(features.shape[1]))
    metric.set_dtype(torch.float64)
    return {"fid": _of(metric, features, reference).item()}


def kid(features: Tensor, reference: Tensor, seed: int = 0) -> dict[str, float]:
    """Kernel distance, unbiased also for few pictures, and its spread over subsets (Binkowski et al. 2018)."""
    size = min(KID_SUBSET_SIZE, len(features), len(reference))
    if size < 2:
        raise UserError("KID needs at least two pictures on each side")
    make = _torchmetrics().image.kid.KernelInceptionDistance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that features are kept, which they are anyway
        metric = make(_Given(features.shape[1]), subsets=KID_SUBSETS, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # which subsets are drawn
        mean, spread = _of(metric, features.double(), reference.double())
    return {"kid": mean.item(), "kid_std": spread.item(), "kid_subset_size": float(size)}


def precision_recall(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Share of pictures within the reference's manifold and the reverse (Kynkaanniemi et al. 2019), k = 3."""
    if min(len(features), len(reference)) <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need more than {NEIGHBOURHOOD} pictures on each side")
    try:
        from torch_fidelity.metric_prc import prc_features_to_metric
    except ImportError as error:
        raise UserError('precision and recall need the package torch-fidelity: pip install "ldm[eval]"') from error
    found = prc_features_to_metric(
        features, reference, prc_neighborhood=NEIGHBOURHOOD, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    )
    return {"precision": found["precision"], "recall": found["recall"]}


Distance = Callable[[Tensor, Tensor], dict[str, float]]
distances: dict[str, Distance] = {"fid": fid, "kid": kid, "precision": precision_recall}


class _Given(nn.Module):
    """Stands where torchmetrics expects a network from pictures to features: it is handed the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _of(metric: Any, features: Tensor, reference: Tensor) -> Any:
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return metric.compute()


def _torchmetrics() -> Any:
    try:
        import torchmetrics
        import torchmetrics.image.fid
        import torchmetrics.image.kid
    except ImportError as error:
        raise UserError('measuring needs the package torchmetrics: pip install "ldm[eval]"') from error
    return torchmetrics
