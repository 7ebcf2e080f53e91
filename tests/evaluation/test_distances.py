"""Distances between sets of features against torch-fidelity, torchmetrics and closed forms."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, fid, kid, precision_recall


class Identity(torch.nn.Module):
    """Replaces torchmetrics' network: it receives the features."""

    num_features = 16

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def clouds(count: int = 200, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, count, width, generator=generator)
    return ours @ torch.randn(width, width, generator=generator) / 4 + 0.3, theirs


def test_fid_equals_that_of_torch_fidelity_and_of_torchmetrics() -> None:
    ours, theirs = clouds()
    found = fid(FeatureSet(ours), FeatureSet(theirs))["fid"]
    statistics = [fid_features_to_statistics(cloud) for cloud in (ours, theirs)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(expected, rel=1e-6)
    metric = FrechetInceptionDistance(Identity()).set_dtype(torch.float64)
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    assert found == pytest.approx(metric.compute().item(), rel=1e-6)


def test_fid_of_fewer_images_than_dimensions_equals_that_of_singular_covariances() -> None:
    ours, theirs = clouds(6, 40)
    a, b = (cloud.double() - cloud.double().mean(0) for cloud in (ours, theirs))
    # tr (S T)^1/2 of S = A'A / (n - 1) and T = B'B / (n - 1) is the sum of the singular values of A B' / (n - 1).
    cross = torch.linalg.svdvals(a @ b.T).sum() / 5
    between = (ours.double().mean(0) - theirs.double().mean(0)).square().sum()
    expected = between + (a.square().sum() + b.square().sum()) / 5 - 2 * cross
    assert fid(FeatureSet(ours), FeatureSet(theirs))["fid"] == pytest.approx(expected.item(), rel=1e-6)


def test_fid_of_shifted_images_is_the_shift_squared() -> None:
    _, cloud = clouds()
    assert fid(FeatureSet(cloud + 2), FeatureSet(cloud))["fid"] == pytest.approx(4 * cloud.shape[1], rel=1e-4)


def test_kid_equals_that_of_torch_fidelity() -> None:
    ours, theirs = clouds()
    expected = kid_features_to_metric(
        ours, theirs, kid_subsets=1, kid_subset_size=len(ours), kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
    )  # fmt: skip
    found = kid(FeatureSet(ours), FeatureSet(theirs))
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["kid_subset_size"] == 200


def test_precision_and_recall_distinguish_a_narrow_model_from_a_wrong_one() -> None:
    _, data = clouds(400, 4)
    reference = FeatureSet(data[200:])
    assert precision_recall(FeatureSet(data[:200]), reference) == pytest.approx(
        {"precision": 0.9, "recall": 0.9}, abs=0.1
    )
    narrow = precision_recall(FeatureSet(data[:200] * 0.2), reference)
    assert narrow["precision"] > 0.9
    assert narrow["recall"] < 0.3
    assert precision_recall(FeatureSet(data[:200] + 100), reference) == {"precision": 0.0, "recall": 0.0}


def test_too_few_images_raise_an_error() -> None:
    one = FeatureSet(torch.zeros(1, 4))
    for distance in (fid, kid, precision_recall):
        with pytest.raises(UserError, match="images"):
            distance(one, one)
