"""Images to feature vectors: what FID, KID, precision and recall, and nearest neighbours are measured in.

Published FIDs are measured in Inception's features. Other networks give other numbers, to be compared only with numbers
of the same network; `Features.comparable` tells which is which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import UserError, install_extra
from ldm.models.efficientnet import MEAN, NAME, STD, load_efficientnet

OFFLINE = NAME
RESIZING = "bicubic, antialiased, rounded to bytes"  # what `resize` does


class Features(nn.Module):
    """A frozen network from images, uint8 (B, 3, H, W), to features (B, D) in float32.

    Images are resized to `side` pixels with antialiased bicubic interpolation and rounded to bytes again, as files of
    that size would hold them (Parmar et al. 2022); a `side` of None leaves the resizing to the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        side: int | None,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        comparable: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.network, self.side, self.comparable = name, network, side, comparable
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) of bytes, on the network's device."""
        images = images.to(self.mean.device)
        if self.side is None:
            return self.network(images).float()
        resized = resize(images, self.side).float() / 255
        return self.network((resized - self.mean) / self.std).float()

    @property
    def resizing(self) -> str:
        """How images are made the size that the network takes, in words."""
        return "the network's own" if self.side is None else f"{RESIZING} to {self.side} pixels"

    def digest(self) -> str:
        """Of the network's weights, and of the mean and deviation that images are normalised with."""
        found = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.float().cpu().contiguous().numpy())
        return found.hexdigest()


def resize(images: Tensor, side: int) -> Tensor:
    """Images of bytes (B, 3, H, W) as bytes (B, 3, side, side)."""
    if images.shape[-2:] == (side, side):
        return images
    sized = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return sized.round().clamp(0, 255).to(torch.uint8)


def make_features(name: str) -> Features:
    """The features `inception`, `efficientnet-lite0`, `timm:MODEL` or `clip:MODEL`; UserError for what is not there.

    `timm:` takes any model of timm with its pretrained weights, `clip:` a CLIP of transformers, a folder or a Hub id.
    """
    kind, _, model = name.partition(":")
    if kind not in _makers or bool(model) != (kind in ("timm", "clip")):
        raise UserError(f"no features {name!r}: there are inception, {OFFLINE}, timm:MODEL and clip:MODEL")
    return _makers[kind](model)


def inception_path() -> Path:
    """Where the original Inception network's weights are looked for: torch-fidelity's file in torch hub's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


def _inception(model: str) -> Features:
    """Inception v3 as in Heusel et al. 2017, with its resizing of TensorFlow's making, through torch-fidelity."""
    path = inception_path()
    extractor = _torch_fidelity()
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(extractor.URL_INCEPTION_V3, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"published FID needs Inception's weights and they could not be downloaded: put torch-fidelity's "
                f"{path.name} at {path} (TORCH_HOME moves it), or measure with --features {OFFLINE}"
            ) from error
    try:
        network = extractor.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:  # torch.load and load_state_dict raise many types for what is no such checkpoint
        raise UserError(f"{path} is no readable checkpoint of Inception v3") from error
    return Features("inception", _First(network), None, comparable=True)


def _torch_fidelity() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as error:
        raise UserError(f"published FID needs torch-fidelity: {install_extra('eval')}") from error
    return feature_extractor_inceptionv3


def _efficientnet_lite0(model: str) -> Features:
    """EfficientNet-Lite0 pooled before its last layer."""
    network = load_efficientnet()
    network.reset_classifier(0)
    network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    return Features(OFFLINE, network, 224, mean=(MEAN,) * 3, std=(STD,) * 3)


def _timm(model: str) -> Features:
    import timm

    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # unknown names, missing weights and networks raise many types
        raise UserError(f"features timm:{model} cannot be had: {' '.join(str(error).split())}") from error
    data = timm.data.resolve_model_data_config(network)
    return Features(f"timm:{model}", network, data["input_size"][-1], data["mean"], data["std"])


def _clip(model: str) -> Features:
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    try:
        network = CLIPVisionModelWithProjection.from_pretrained(model)
        processor = AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"features clip:{model} cannot be had: {' '.join(str(error).split())}") from error
    side = network.config.image_size
    return Features(
        f"clip:{model}", _ImageEmbeds(network), side, tuple(processor.image_mean), tuple(processor.image_std)
    )


class _First(nn.Module):
    """The first of a network's outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


class _ImageEmbeds(nn.Module):
    """What a CLIP's image tower projects an image to."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).image_embeds


_makers: dict[str, Callable[[str], Features]] = {
    "inception": _inception,
    OFFLINE: _efficientnet_lite0,
    "timm": _timm,
    "clip": _clip,
}
