"""What `--dry-run` prints: the size of a run before it starts."""

from __future__ import annotations

import torch
from torch import nn

from ldm.config import Config
from ldm.data.sources import open_source
from ldm.errors import UserError


def plan(stage: str, config: Config, data: str) -> str:
    """Parameters, steps, epochs and the memory of weights and optimiser, as lines of text; networks take no memory."""
    settings = config.training.autoencoder if stage == "autoencoder" else config.training.unet
    pictures = config.data.scenes.num if data == "scenes" else len(open_source(data, config.data))
    with torch.device("meta"):
        networks = _networks(stage, config)
    parameters = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    total = sum(parameters.values())
    samples = settings.max_steps * settings.batch_size
    facts = {f"parameters of the {name}": f"{count:,}" for name, count in parameters.items()}
    facts |= {
        "pictures": f"{pictures:,} of {config.data.size}x{config.data.size}",
        "steps": f"{settings.max_steps:,} of {settings.batch_size} pictures",
        "epochs": f"{samples / pictures:.1f}",
        # weights, gradients, two moments of AdamW and the EMA, all in float32
        "memory of weights and optimiser": f"{5 * 4 * total / 2**20:,.0f} MiB a process, activations come on top",
        "saves": f"every {settings.save_every:,} steps, the newest {settings.keep} kept",
    }
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def _networks(stage: str, config: Config) -> dict[str, nn.Module]:
    from ldm.models.autoencoder import Autoencoder
    from ldm.models.discriminator import PatchDiscriminator
    from ldm.models.text import make_text_encoder
    from ldm.models.unet import UNet

    if stage == "unet":
        unet = UNet(config.need_unet())
        if config.text is None:
            raise UserError("train-unet trains models of text alone, with one text encoder")
        text = {} if config.text.frozen else {"text encoder": make_text_encoder(config.text)}
        return {"U-Net": unet, **text}
    networks: dict[str, nn.Module] = {"autoencoder": Autoencoder(config.autoencoder)}
    if config.loss.adversarial.weight:
        networks["discriminator"] = PatchDiscriminator(config.loss.adversarial, config.autoencoder.in_channels)
    return networks
