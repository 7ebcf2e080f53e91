"""Distances between two sets of images, computed from their features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.optional import import_optional

FID = "frechet_inception_distance"  # as torch-fidelity calls it, whatever the features
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURHOOD = 3


class Moments(NamedTuple):
    """Mean and covariance of features, in float64."""

    mean: Tensor  # (D,)
    covariance: Tensor  # (D, D)


class FeatureSet:
    """Features (N, D) of images, and their moments."""

    def __init__(self, features: Tensor, moments: Moments | None = None) -> None:
        self.features, self._moments = features, moments

    def __len__(self) -> int:
        return len(self.features)

    @property
    def moments(self) -> Moments:
        """Mean and unbiased covariance, computed on first use."""
        if self._moments is None:
            wide = self.features.double()
            self._moments = Moments(wide.mean(0), torch.cov(wide.T))
        return self._moments


def fid(ours: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Frechet inception distance (Heusel et al. 2017), with torch-fidelity.

    The estimate is too high for few images per dimension: compare results of equal numbers of images only.
    """
    if min(len(ours), len(reference)) < 2:
        raise UserError("FID needs at least two samples and two reference images")
    both = [
        {"mu": found.moments.mean.numpy(), "sigma": found.moments.covariance.numpy()} for found in (ours, reference)
    ]
    metric = import_optional("torch_fidelity.metric_fid", "FID and rFID")
    return {"fid": metric.fid_statistics_to_metric(*both, verbose=False)[FID]}


def kid(ours: FeatureSet, reference: FeatureSet, seed: int = 0) -> dict[str, float]:
    """Kernel inception distance, unbiased, and its standard deviation over subsets (Binkowski et al. 2018)."""
    size = min(KID_SUBSET_SIZE, len(ours), len(reference))
    if size < 2:
        raise UserError("KID needs at least two images on each side")
    subsets = 1 if size == len(ours) == len(reference) else KID_SUBSETS  # all images are one subset
    make = import_optional("torchmetrics.image.kid", "KID metrics").KernelInceptionDistance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about the memory of features
        metric = make(_Identity(ours.features.shape[1]), subsets=subsets, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # selects the subsets
        metric.update(reference.features.double(), real=True)
        metric.update(ours.features.double(), real=False)
        mean, spread = metric.compute()
    return {"kid": mean.item(), "kid_std": spread.item(), "kid_subset_size": float(size)}


def precision_recall(ours: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Precision and recall of the manifolds of features (Kynkaanniemi et al. 2019), k = 3."""
    if min(len(ours), len(reference)) <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need more than {NEIGHBOURHOOD} images on each side")
    options = {"prc_neighborhood": NEIGHBOURHOOD, "prc_batch_size": 10_000, "save_cpu_ram": True, "verbose": False}
    find = import_optional("torch_fidelity.metric_prc", "precision and recall").prc_features_to_metric
    found = find(ours.features, reference.features, **options)
    return {"precision": found["precision"], "recall": found["recall"]}


Distance = Callable[[FeatureSet, FeatureSet], dict[str, float]]
distances: dict[str, Distance] = {"fid": fid, "kid": kid, "precision": precision_recall}


class _Identity(nn.Module):
    """Replaces the network from images to features in torchmetrics, which receives the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
