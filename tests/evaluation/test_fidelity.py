"""Measures of reconstruction against scikit-image and the lpips package."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldm.errors import UserError
from ldm.evaluation import fidelity
from ldm.evaluation.fidelity import PSNR_LIMIT, metrics, psnr, ssim
from ldm.evaluation.neighbours import as_vectors, nearest


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 255)
    noisy = (image + 20 * torch.randn(image.shape, generator=generator)).clamp(0, 255)
    return noisy.round().byte(), image.round().byte()


def test_psnr_and_ssim_equal_those_of_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = (part.permute(0, 2, 3, 1).numpy() for part in pair)
    for index in range(3):
        expected = peak_signal_noise_ratio(theirs[index], ours[index])
        assert psnr(*pair)[index].item() == pytest.approx(expected, rel=1e-6)
        expected = structural_similarity(
            theirs[index], ours[index], channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(*pair)[index].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rows", [1, 20, 53])
def test_ssim_of_a_large_image_is_computed_in_bands(
    pair: tuple[torch.Tensor, torch.Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ssim(*pair)
    monkeypatch.setattr(fidelity, "SSIM_PIXELS", 64 * rows)
    torch.testing.assert_close(ssim(*pair), whole, rtol=1e-6, atol=0)


def test_psnr_of_an_exact_copy_is_the_limit_and_not_infinite(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, image = pair
    assert psnr(image, image).tolist() == [PSNR_LIMIT] * 3
    one_value = image[:, :, :2, :2].clone()
    one_value[:, 0, 0, 0] ^= 1
    assert (psnr(one_value, image[:, :, :2, :2]) < PSNR_LIMIT).all()


def test_unknown_metrics_raise_an_error() -> None:
    with pytest.raises(UserError, match="choose from psnr"):
        metrics(["mse"])


def test_the_nearest_neighbour_of_an_image_in_the_data_is_itself() -> None:
    images = np.random.default_rng(0).integers(256, size=(20, 64, 64, 3), dtype=np.uint8)
    vectors = as_vectors(images)
    assert vectors.shape == (20, 3 * 32 * 32)
    found = nearest(vectors[[4, 7]], vectors, 3)
    assert found[:, 0].tolist() == [4, 7]
    assert found.shape == (2, 3)
