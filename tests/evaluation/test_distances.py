"""Distances between sets of features against torch-fidelity and closed forms."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ldm.errors import UserError
from ldm.evaluation.distances import fid, kid, precision_recall


def clouds(count: int = 200, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, count, width, generator=generator)
    return ours @ torch.randn(width, width, generator=generator) / 4 + 0.3, theirs


def test_fid_is_that_of_torch_fidelity() -> None:
    ours, theirs = clouds()
    statistics = [fid_features_to_statistics(cloud) for cloud in (ours, theirs)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid(ours, theirs)["fid"] == pytest.approx(expected, rel=1e-3)


def test_fid_of_shifted_pictures_is_the_shift_squared() -> None:
    _, cloud = clouds()
    assert fid(cloud + 2, cloud)["fid"] == pytest.approx(4 * cloud.shape[1], rel=1e-4)


def test_kid_is_that_of_torch_fidelity() -> None:
    ours, theirs = clouds()
    expected = kid_features_to_metric(
        ours, theirs, kid_subsets=1, kid_subset_size=len(ours), kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
    )  # fmt: skip
    found = kid(ours, theirs)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["kid_subset_size"] == 200


def test_precision_and_recall_tell_a_narrow_model_from_a_wrong_one() -> None:
    _, data = clouds(400, 4)
    assert precision_recall(data[:200], data[200:]) == pytest.approx({"precision": 0.9, "recall": 0.9}, abs=0.1)
    narrow = precision_recall(data[:200] * 0.2, data[200:])
    assert narrow["precision"] > 0.9
    assert narrow["recall"] < 0.3
    assert precision_recall(data[:200] + 100, data[200:]) == {"precision": 0.0, "recall": 0.0}


def test_too_few_pictures_are_refused() -> None:
    one = torch.zeros(1, 4)
    for distance in (fid, kid, precision_recall):
        with pytest.raises(UserError, match="pictures"):
            distance(one, one)
