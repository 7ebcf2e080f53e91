"""Feature vectors of images, for FID, KID, precision, recall and nearest neighbours.

Published FIDs use Inception's features (`Features.comparable`). Results of other networks are comparable only with
results of the same network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import UserError
from ldm.evaluation.optional import import_optional
from ldm.models.efficientnet import MEAN, NAME, STD, load_efficientnet

OFFLINE = NAME
RESIZING = "bicubic, antialiased, rounded to bytes"  # by `resize`


class Features(nn.Module):
    """A frozen network from images, uint8 (B, 3, H, W), to features (B, D) in float32.

    Images are resized to `side` pixels with antialiased bicubic interpolation and rounded to bytes (Parmar et al.
    2022); with a `side` of None the network resizes them.
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
        """Compute features (B, D) of images, bytes (B, 3, H, W), on the network's device."""
        images = images.to(self.mean.device)
        if self.side is None:
            return self.network(images).float()
        resized = resize(images, self.side).float() / 255
        return self.network((resized - self.mean) / self.std).float()

    @property
    def resizing(self) -> str:
        """Description of how images are resized for the network."""
        return "the network's own" if self.side is None else f"{RESIZING} to {self.side} pixels"

    def digest(self) -> str:
        """Return a digest of the network's weights and of the normalization of images."""
        found = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.float().cpu().contiguous().numpy())
        return found.hexdigest()


def resize(images: Tensor, side: int) -> Tensor:
    """Resize images, bytes (B, 3, H, W), to bytes (B, 3, side, side)."""
    if images.shape[-2:] == (side, side):
        return images
    sized = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return sized.round().clamp(0, 255).to(torch.uint8)


def make_features(name: str) -> Features:
    """Load the features `inception`, `efficientnet-lite0`, `timm:MODEL` or `clip:MODEL`.

    `timm:` accepts any pretrained model of timm, `clip:` a folder or a Hub id of a CLIP model of transformers.
    """
    kind, _, model = name.partition(":")
    if kind not in _loaders or bool(model) != (kind in ("timm", "clip")):
        raise UserError(f"unknown features {name!r}: choose inception, {OFFLINE}, timm:MODEL or clip:MODEL")
    return _loaders[kind](model)


def inception_path() -> Path:
    """Return the path of the original Inception weights: torch-fidelity's file in torch hub's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


def _inception(model: str) -> Features:
    """Inception v3 with TensorFlow's resizing, as in Heusel et al. 2017, with torch-fidelity."""
    path = inception_path()
    extractor = import_optional("torch_fidelity.feature_extractor_inceptionv3", "published FIDs")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(extractor.URL_INCEPTION_V3, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"the weights of Inception for published FIDs cannot be downloaded: put torch-fidelity's {path.name} "
                f"at {path} (set by TORCH_HOME), or measure with --features {OFFLINE}"
            ) from error
    try:
        network = extractor.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:  # torch.load and load_state_dict raise many types
        raise UserError(f"{path} is not a checkpoint of Inception v3: remove it to download it again") from error
    return Features("inception", _First(network), None, comparable=True)


def _efficientnet_lite0(model: str) -> Features:
    """EfficientNet-Lite0, pooled before its last layer."""
    network = load_efficientnet()
    network.reset_classifier(0)
    network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    return Features(OFFLINE, network, 224, mean=(MEAN,) * 3, std=(STD,) * 3)


def _timm(model: str) -> Features:
    import timm

    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # timm raises many types
        raise UserError(f"features timm:{model} cannot be loaded: {' '.join(str(error).split())}") from error
    data = timm.data.resolve_model_data_config(network)
    return Features(f"timm:{model}", network, data["input_size"][-1], data["mean"], data["std"])


def _clip(model: str) -> Features:
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    try:
        network = CLIPVisionModelWithProjection.from_pretrained(model)
        processor = AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"features clip:{model} cannot be loaded: {' '.join(str(error).split())}") from error
    side = network.config.image_size
    return Features(f"clip:{model}", _First(network), side, tuple(processor.image_mean), tuple(processor.image_std))


class _First(nn.Module):
    """The first output of a network; for CLIP these are the projected image embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


_loaders: dict[str, Callable[[str], Features]] = {
    "inception": _inception,
    OFFLINE: _efficientnet_lite0,
    "timm": _timm,
    "clip": _clip,
}
