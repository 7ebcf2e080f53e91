"""What networks cost: operations of a call, memory of weights and of training; on the meta device, without memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ldm.checkpoint.compvis.contents import Contents
from ldm.config.root import Config
from ldm.info.describe import Description
from ldm.info.parameters import of_network
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import Added, UNet
from ldm.storage.weights import WithoutInitialValues

PRODUCTS = {torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, F.conv1d, F.conv_transpose2d}
PRODUCTS |= {Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm}

# Bytes that a trained number takes: itself, its gradient, Adam's two moments and the average, all in float32.
TRAINED = 5 * 4
FROZEN = 4


def make_networks(contents: Contents, but: Collection[str] = ()) -> dict[str, nn.Module]:
    """The networks of all sections `but` some, on the meta device: they have shapes and no numbers."""
    with torch.device("meta"), WithoutInitialValues():
        return {name: contents.make(name).eval() for name in contents.networks if name not in but}


def flops(contents: Contents, networks: dict[str, nn.Module], side: int, tokens: int) -> dict[str, int]:
    """Floating-point operations of one U-Net call, and of an image's way to latents and back.

    Latents have `side` positions along each side, the context has `tokens`, and batches are of one; a multiplication
    and an addition are two.
    """
    counted = {}
    if contents.unet is not None:
        unet = networks["unet"]
        assert isinstance(unet, UNet)
        inputs = _unet_inputs(contents.unet, side, tokens)
        counted["unet"] = _count(lambda: unet(**inputs))
    if contents.autoencoder is not None:
        autoencoder, config = networks["autoencoder"], contents.autoencoder
        assert isinstance(autoencoder, Autoencoder)
        images = _empty(1, config.in_channels, *(2 * [side * config.downsampling_factor]))
        latents = _empty(1, config.latent_channels, side, side)
        counted["encode"] = _count(lambda: autoencoder.encode(images))
        counted["decode"] = _count(lambda: autoencoder.decode(latents))
    return counted


def _unet_inputs(config: UNetConfig, side: int, tokens: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {"latents": _empty(1, config.in_channels, side, side), "t": _empty(1)}
    if config.cross_attention_dim is not None:
        inputs["context"] = _empty(1, tokens, config.cross_attention_dim)
    if config.num_class_embeds is not None:
        inputs["classes"] = torch.empty(1, dtype=torch.int64, device="meta")
    elif config.class_embed_type == "timestep":
        inputs["classes"] = _empty(1)
    elif config.class_embed_type is not None:
        width = config.projection_class_embeddings_input_dim or 4 * config.block_out_channels[0]
        inputs["classes"] = _empty(1, width)
    if config.addition_embed_type is not None:
        sizes = 6 * (config.addition_time_embed_dim or 0)
        inputs["added"] = Added(_empty(1, (config.projection_class_embeddings_input_dim or 0) - sizes), _empty(1, 6))
    return inputs


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@torch.no_grad()
def _count(call: Callable[[], object]) -> int:
    with _ShapesAlone() as layers:
        call()
    return layers.flops


class _ShapesAlone(TorchFunctionMode):
    """Counts what layers cost and gives what they make as a shape, for which the meta device takes most of a second.

    Products outside of them are left to PyTorch's own counter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.layer_norm, F.silu, F.gelu):
            return torch.empty_like(args[0])
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._attention(*args[:3])
        if func is F.conv2d:
            made = func(*args, **(kwargs or {}))
            self.flops += 2 * made.numel() * args[1][0].numel()
            return made
        if func in PRODUCTS:
            return self._product(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _product(self, func: Any, *args: Any, **options: Any) -> Tensor:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            made: Tensor = func(*args, **options)
        self.flops += int(counter.get_total_flops())
        return made

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made = _empty(*x.shape[:-1], len(weight))
        self.flops += 2 * made.numel() * weight.shape[1]
        return made

    def _attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        made = _empty(*queries.shape[:-1], values.shape[-1])
        self.flops += 2 * queries.shape[:-1].numel() * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])
        return made


def training_memory(description: Description, totals: dict[str, int]) -> dict[str, int]:
    """Bytes of what is trained and what stands beside it, by stage; activations are not counted.

    `totals` are the parameters of each part. A frozen text encoder, and the autoencoder below a U-Net, are weights
    alone; what else a file holds does not train.
    """
    stages = {}
    if "autoencoder" in totals:
        stages["autoencoder"] = TRAINED * (totals["autoencoder"] + _opponent(description.config))
    if "unet" in totals:
        texts = {"text": description.contents.text, "text_2": description.contents.text_2}
        frozen = {"autoencoder", *(name for name, text in texts.items() if text is not None and text.frozen)}
        needed = {name: count for name, count in totals.items() if name in Contents.model_fields}
        stages["unet"] = sum((FROZEN if name in frozen else TRAINED) * count for name, count in needed.items())
    return stages


def _opponent(config: Config | None) -> int:
    """Parameters of the discriminator that an autoencoder is trained against."""
    if config is None or not config.loss.adversarial.weight:
        return 0
    with torch.device("meta"), WithoutInitialValues():
        return sum(of_network(PatchDiscriminator(config.loss.adversarial, config.autoencoder.in_channels)).values())
