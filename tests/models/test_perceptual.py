"""LPIPS: its value, its gradients, and errors for missing or invalid weights."""

from pathlib import Path

import lpips
import pytest
import torch
from loss_terms import loss_terms, losses
from torchvision import models

from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.perceptual import PerceptualDistance, backbone_path


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
    """A backbone file with random weights, since the pretrained one is not available everywhere."""
    torch.manual_seed(0)
    state = models.squeezenet1_1(weights=None).state_dict()
    path = backbone_path("squeeze")
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return state


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_the_error_for_a_missing_backbone_names_its_path_and_how_to_train_without_it(hub: Path, net: str) -> None:
    with pytest.raises(UserError) as error:
        PerceptualDistance(net)
    assert str(backbone_path(net)) in str(error.value)
    assert str(hub) in str(error.value)
    assert "loss.perceptual.weight=0" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_distance_equals_the_lpips_package(squeeze_backbone: dict[str, torch.Tensor]) -> None:
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


def test_its_gradient_reaches_the_autoencoder_but_not_its_weights(squeeze_backbone: dict) -> None:
    terms = loss_terms(reconstruction={}, perceptual={"weight": 1.0, "net": "squeeze"})
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4, "mid_block_attention": False, "layers_per_block": 1}
    autoencoder = Autoencoder(AutoencoderConfig(**widths))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reconstructions, _ = autoencoder(images, torch.randn(2, 4, 32, 32))
    losses(terms, images, reconstructions)["perceptual"].backward()
    gradients = {name: weight.grad for name, weight in autoencoder.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values()), gradients
    assert all(weight.grad is None for weight in terms[1].network.parameters())


def test_a_file_of_another_network_raises_an_error(squeeze_backbone: dict) -> None:
    torch.save({"features.0.weight": torch.zeros(3)}, backbone_path("squeeze"))
    with pytest.raises(UserError, match="does not match"):
        PerceptualDistance("squeeze")
    backbone_path("squeeze").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        PerceptualDistance("squeeze")
