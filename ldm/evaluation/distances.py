"""Distances between two sets of images, each known by its features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.errors import UserError, install_extra

FID = "frechet_inception_distance"  # as torch-fidelity calls it, whatever the features
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURHOOD = 3


class Moments(NamedTuple):
    """Of features, in float64."""

    mean: Tensor  # (D,)
    covariance: Tensor  # (D, D)


class FeatureSet:
    """Features (N, D) of images, and the moments of the normal distribution fitted to them."""

    def __init__(self, features: Tensor, moments: Moments | None = None) -> None:
        self.features, self._moments = features, moments

    def __len__(self) -> int:
        return len(self.features)

    @property
    def moments(self) -> Moments:
        """Mean and unbiased covariance, computed when they are asked for first."""
        if self._moments is None:
            wide = self.features.double()
            self._moments = Moments(wide.mean(0), torch.cov(wide.T))
        return self._moments


def fid(ours: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Frechet distance of the normal distributions fitted to both (Heusel et al. 2017), through torch-fidelity.

    Its estimate is too high for few images, the more so for few images a dimension: compare equal numbers only.
    """
    if min(len(ours), len(reference)) < 2:
        raise UserError("FID needs at least two images on each side")
    both = [
        {"mu": found.moments.mean.numpy(), "sigma": found.moments.covariance.numpy()} for found in (ours, reference)
    ]
    return {"fid": _torch_fidelity("metric_fid").fid_statistics_to_metric(*both, verbose=False)[FID]}


def kid(ours: FeatureSet, reference: FeatureSet, seed: int = 0) -> dict[str, float]:
    """Kernel distance, unbiased also for few images, and its spread over subsets (Binkowski et al. 2018)."""
    size = min(KID_SUBSET_SIZE, len(ours), len(reference))
    if size < 2:
        raise UserError("KID needs at least two images on each side")
    subsets = 1 if size == len(ours) == len(reference) else KID_SUBSETS  # there is but one of all images
    make = _torchmetrics().image.kid.KernelInceptionDistance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that features are kept, which they are anyway
        metric = make(_Given(ours.features.shape[1]), subsets=subsets, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # which subsets are drawn
        metric.update(reference.features.double(), real=True)
        metric.update(ours.features.double(), real=False)
        mean, spread = metric.compute()
    return {"kid": mean.item(), "kid_std": spread.item(), "kid_subset_size": float(size)}


def precision_recall(ours: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Share of images within the reference's manifold and the reverse (Kynkaanniemi et al. 2019), k = 3."""
    if min(len(ours), len(reference)) <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need more than {NEIGHBOURHOOD} images on each side")
    options = {"prc_neighborhood": NEIGHBOURHOOD, "prc_batch_size": 10_000, "save_cpu_ram": True, "verbose": False}
    find = _torch_fidelity("metric_prc").prc_features_to_metric
    found = find(ours.features, reference.features, **options)
    return {"precision": found["precision"], "recall": found["recall"]}


Distance = Callable[[FeatureSet, FeatureSet], dict[str, float]]
distances: dict[str, Distance] = {"fid": fid, "kid": kid, "precision": precision_recall}


class _Given(nn.Module):
    """Stands where torchmetrics expects a network from images to features: it is handed the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torch_fidelity(module: str) -> Any:
    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise UserError(f"FID, precision and recall need torch-fidelity: {install_extra('eval')}") from error


def _torchmetrics() -> Any:
    try:
        import torchmetrics
        import torchmetrics.image.kid
    except ImportError as error:
        raise UserError(f"KID needs torchmetrics: {install_extra('eval')}") from error
    return torchmetrics
