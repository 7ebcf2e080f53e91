"""LPIPS: what is needed, what is said when it is missing, and that its gradient arrives."""

from pathlib import Path

import lpips
import pytest
import torch
from torchvision import models

from ldm.config.losses import LossConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.perceptual import PerceptualDistance, backbone_path
from ldm.training.losses import AutoencoderLoss


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path


@pytest.fixture
def squeeze_backbone(hub: Path) -> dict[str, torch.Tensor]:
    """A file of the right name and shapes with random weights: the pretrained one cannot be had everywhere."""
    torch.manual_seed(0)
    state = models.squeezenet1_1(weights=None).state_dict()
    path = backbone_path("squeeze")
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return state


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_a_missing_backbone_is_named_with_its_place_and_the_way_without(hub: Path, net: str) -> None:
    with pytest.raises(UserError) as error:
        PerceptualDistance(net)
    assert str(backbone_path(net)) in str(error.value)
    assert str(hub) in str(error.value)
    assert "loss.perceptual.weight=0" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_distance_is_that_of_the_lpips_package(squeeze_backbone: dict[str, torch.Tensor]) -> None:
    distance = PerceptualDistance("squeeze")
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    for number in range(1, 8):
        for name, layer in getattr(reference.net, f"slice{number}").named_children():
            prefix = f"features.{name}."
            layer.load_state_dict(
                {key.removeprefix(prefix): w for key, w in squeeze_backbone.items() if key.startswith(prefix)}
            )
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert torch.equal(distance(a, b), reference(a, b).flatten())
    assert distance(a, b).min() > 0
    assert torch.equal(distance(a, a), torch.zeros(2))


def test_its_gradient_reaches_the_autoencoder_and_its_own_weights_stay(squeeze_backbone: dict) -> None:
    config = LossConfig.model_validate({"perceptual": {"weight": 1.0, "net": "squeeze"}})
    loss = AutoencoderLoss(config, torch.device("cpu"))
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4, "mid_block_attention": False, "layers_per_block": 1}
    autoencoder = Autoencoder(AutoencoderConfig(**widths))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reconstructions, posterior = autoencoder(images, torch.randn(2, 4, 32, 32))
    terms = loss.terms(images, reconstructions, posterior.kl(), torch.tensor(0.0))
    terms["perceptual"].backward()
    gradients = {name: weight.grad for name, weight in autoencoder.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values()), gradients
    assert all(weight.grad is None for weight in loss.perceptual.parameters())


def test_a_file_of_another_network_is_refused(squeeze_backbone: dict) -> None:
    torch.save({"features.0.weight": torch.zeros(3)}, backbone_path("squeeze"))
    with pytest.raises(UserError, match="does not fit"):
        PerceptualDistance("squeeze")
    backbone_path("squeeze").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="no readable checkpoint"):
        PerceptualDistance("squeeze")
