"""LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features") through the `lpips` package.

The package brings the learned linear layers; the backbone's ImageNet weights are torchvision's, read from the torch
hub cache and downloaded into it where the network allows. A backbone that cannot be had is an error, never a skip.
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


class PerceptualDistance(nn.Module):
    """LPIPS between images in [-1, 1]; frozen, but its gradient reaches both images.

    Raises UserError when the backbone's weights are neither on this machine nor to be downloaded.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        state = backbone_state(net)
        import lpips

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision's notes on the arguments that lpips passes
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        fill_backbone(self.network.net, state)
        self.network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode: the dropout of LPIPS' linear layers belongs to its own training only."""
        return super().train(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances (B,) of images from references, both (B, 3, H, W) in [-1, 1]."""
        return self.network(images, references).flatten()


def backbone_path(net: str) -> Path:
    """Where the ImageNet weights of a backbone are looked for: torchvision's file in the torch hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_weights(net).url).name


def backbone_state(net: str) -> dict[str, Tensor]:
    """The backbone's weights from the torch hub cache, downloaded there first if need be."""
    path = backbone_path(net)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_weights(net).url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"LPIPS needs the ImageNet weights of its {net} backbone and they could not be downloaded: put "
                f"torchvision's {path.name} at {path} (TORCH_HOME moves it), or do without: "
                "--set loss.perceptual.weight=0"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for what is no checkpoint
        raise UserError(f"{path} is no readable checkpoint of the {net} backbone of LPIPS") from error


def fill_backbone(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    """Load torchvision's weights into the slices of LPIPS' backbone, which keep the layers' numbers.

    Raises UserError when a layer's weights are missing or of another shape.
    """
    # `slice3.10.weight` there is `features.10.weight` in torchvision.
    wanted = {key: "features." + key.split(".", 1)[1] for key in backbone.state_dict()}
    try:
        backbone.load_state_dict({key: state[source] for key, source in wanted.items()})
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint of LPIPS' backbone does not fit it: {reason}") from error


def _weights(net: str) -> Any:
    from torchvision import models

    return {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    }[net]
