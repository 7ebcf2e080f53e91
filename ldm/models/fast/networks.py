"""Prepared copies of networks, with their blocks replaced by prepared ones."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn

from ldm.models.attention import Attention, FeedForward, SpatialAttention, SpatialTransformer, TransformerBlock
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.compiling import forget_compiled, is_compiled
from ldm.models.fast.blocks import (
    PreparedCrossAttention,
    PreparedDownsampleResBlock,
    PreparedFeedForward,
    PreparedGroupNorm,
    PreparedResNetBlock,
    PreparedSelfAttention,
    PreparedSpatialAttention,
    PreparedSpatialTransformer,
    PreparedTransformerBlock,
    PreparedUpsample,
    PreparedUpsampleResBlock,
)
from ldm.models.fast.packed import PackedConv2d, PackedLinear, channels_last, works
from ldm.models.layers import Downsample, DownsampleResBlock, ResNetBlock, Upsample, UpsampleResBlock
from ldm.models.precision import supported_dtype
from ldm.models.unet.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)

REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    ResNetBlock: PreparedResNetBlock,
    DownsampleResBlock: PreparedDownsampleResBlock,
    UpsampleResBlock: PreparedUpsampleResBlock,
    SpatialAttention: PreparedSpatialAttention,
    SpatialTransformer: PreparedSpatialTransformer,
    TransformerBlock: PreparedTransformerBlock,
    FeedForward: PreparedFeedForward,
    Attention: PreparedCrossAttention,
    Upsample: PreparedUpsample,
    Downsample: Downsample,
}
PLAIN = {nn.Module, nn.ModuleList, nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Identity}

ONCE = ("time_emb_proj", "attn2.to_k", "attn2.to_v")  # layers that run once a prompt or grid, not at each step


def prepare_for_sampling(network: Network, dtype: torch.dtype | None = None) -> Network:
    """Copy a network for inference; the copy is used like the network and gives the same outputs.

    Float32 outputs differ by rounding alone, below 1e-5 of their norm. With a `dtype` the copy computes in it
    (`supported_dtype`); bfloat16
    outputs are as close to the float32 network's as a plain copy's, and mostly closer.

    Copying is fast and shares the network's weights. On a CPU layers of blocks pack their own at their first call: as
    many bytes as the network's, and half as many again in upsampling blocks. The copy computes no gradients. Prepare
    again after changing the network's weights. Blocks with changed classes, methods or hooks stay as they are; so does
    the whole network on other devices, in other dtypes than float32 and bfloat16, and where PyTorch lacks oneDNN.
    """
    weight = next(network.parameters(), None)
    dtype = network.dtype if dtype is None else supported_dtype(network.config, dtype)
    typed = network if dtype == network.dtype else copy.deepcopy(network).to(dtype)
    packs = weight is not None and weight.device.type == "cpu" and works(typed.dtype)
    return cast(Network, _copied(typed, packs, network))


def _copied(module: nn.Module, packs: bool, exact: nn.Module, path: str = "") -> nn.Module:
    """Copy a module without copying its weights, and replace its blocks.

    `exact` is the same module before conversion to another dtype; `path` is its name in the network.
    """
    block = type(module) in REPLACED
    if block and not all(map(_is_plain, module.modules())):
        return module
    if packs and type(module) is Upsample:
        return PreparedUpsample(module, cast(Upsample, exact))
    if packs and "_block" in path and not path.endswith(ONCE):
        packed = _packed(module, path)
        if packed is not None:
            return packed
    copied = copy.copy(module)
    forget_compiled(copied)
    copied._parameters = {
        name: None if weight is None else nn.Parameter(weight.detach(), requires_grad=False)
        for name, weight in module._parameters.items()
    }
    copied._modules = {
        name: None if child is None else _copied(child, packs, exact._modules[name], f"{path}.{name}")
        for name, child in module._modules.items()
    }
    if packs and block:
        copied.__class__ = PreparedSelfAttention if path.endswith("attn1") else REPLACED[type(module)]
        if isinstance(copied, PreparedSelfAttention | PreparedFeedForward):
            copied.fuse()
    elif packs and type(module) is nn.GroupNorm and "_block" in path:
        copied.__class__ = PreparedGroupNorm
    elif packs and type(module) is nn.Conv2d:  # so that all maps after it are channels-last
        copied.weight = nn.Parameter(channels_last(module.weight.detach()), requires_grad=False)
    return copied


def _packed(layer: nn.Module, path: str) -> nn.Module | None:
    if type(layer) is nn.Linear:
        return PackedLinear(layer.weight, layer.bias)
    if type(layer) is nn.Conv2d:
        if path.endswith(("proj_in", "proj_out")):  # of a transformer, on tokens
            return PackedLinear(layer.weight.flatten(1), layer.bias)
        (padding, _), (stride, _) = layer.padding, layer.stride
        return PackedConv2d(layer.weight, layer.bias, int(padding), stride)
    return None


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module has a known class and neither hooks nor replaced methods."""
    if type(module) not in PLAIN and type(module) not in REPLACED:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Conv2d) and (module.padding_mode, module.dilation, module.groups) != ("zeros", (1, 1), 1):
        return False
    # What torch.compile replaced is not copied.
    replaced = (value for name, value in vars(module).items() if name != "_compiled_call_impl")
    return not any(callable(value) and not is_compiled(value) for value in replaced)
