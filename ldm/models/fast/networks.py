"""Which blocks of a network are replaced by what, and the copy that has them replaced."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn

from ldm.models.attention import Attention, FeedForward, SpatialAttention, SpatialTransformer, TransformerBlock
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.compiling import forget_compiled, is_compiled
from ldm.models.fast.blocks import (
    PackedGate,
    PreparedCrossAttention,
    PreparedDoublingBlock,
    PreparedFeedForward,
    PreparedGroupNorm,
    PreparedHalvingBlock,
    PreparedResNetBlock,
    PreparedSelfAttention,
    PreparedSpatialAttention,
    PreparedSpatialTransformer,
    PreparedTransformerBlock,
    PreparedUpsample,
)
from ldm.models.fast.packed import PackedConv2d, PackedLinear, channels_last, works
from ldm.models.layers import Downsample, DownsampleResBlock, ResNetBlock, Upsample, UpsampleResBlock
from ldm.models.unet.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)

REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    ResNetBlock: PreparedResNetBlock,
    DownsampleResBlock: PreparedHalvingBlock,
    UpsampleResBlock: PreparedDoublingBlock,
    SpatialAttention: PreparedSpatialAttention,
    SpatialTransformer: PreparedSpatialTransformer,
    TransformerBlock: PreparedTransformerBlock,
    FeedForward: PreparedFeedForward,
    Attention: PreparedCrossAttention,
    Upsample: PreparedUpsample,
    Downsample: Downsample,
}
PARTS = {nn.Module, nn.ModuleList, nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Identity}

ONCE = ("time_emb_proj", "attn2.to_k", "attn2.to_v")  # run once a prompt or a grid, not at each step


def prepare_for_sampling(network: Network, dtype: torch.dtype | None = None) -> Network:
    """A copy of a network for inference, which is used as the network is and gives the same numbers.

    In float32 they differ by rounding alone, below 1e-5 of their norm. With a `dtype` the copy computes in that type;
    in bfloat16 its numbers are as near to those of the network in float32 as a plain copy's, and mostly nearer.
    The copy is made at once and shares the network's weights; on a CPU layers of its blocks get their own, as large as
    the network's and half as much again where sides are doubled, most of them at their first call. What it gives has no
    gradients, and a change of the network's weights shows in it only where they are shared: prepare again after it.
    Blocks that somebody has changed or hooked into stay what they are, and so does the whole network on other devices,
    in other types than float32 and bfloat16, and where PyTorch lacks what is needed.
    """
    weight = next(network.parameters(), None)
    typed = network if dtype in (None, network.dtype) else copy.deepcopy(network).to(dtype)
    packs = weight is not None and weight.device.type == "cpu" and works(typed.dtype)
    return cast(Network, _copied(typed, packs, network))


def _copied(module: nn.Module, packs: bool, exact: nn.Module, path: str = "") -> nn.Module:
    """The module with weights of its own name but not of its own, and its blocks replaced.

    `exact` is the same before it was converted to another type.
    """
    block = type(module) in REPLACED
    if block and not _known(module):
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
        if isinstance(copied, PreparedSelfAttention):
            copied.join()
    elif packs and type(module) is nn.GroupNorm and "_block" in path:
        copied.__class__ = PreparedGroupNorm
    elif packs and type(module) is nn.Conv2d:  # so that all maps after it lie channels last
        copied.weight = nn.Parameter(channels_last(module.weight.detach()), requires_grad=False)
    return copied


def _packed(layer: nn.Module, path: str) -> nn.Module | None:
    if type(layer) is nn.Linear:
        return PackedGate(layer) if path.endswith("net.0.proj") else PackedLinear(layer.weight, layer.bias)
    if type(layer) is nn.Conv2d:
        if path.endswith(("proj_in", "proj_out")):  # of a transformer, which works on tokens
            return PackedLinear(layer.weight.flatten(1), layer.bias)
        (padding, _), (stride, _) = layer.padding, layer.stride
        return PackedConv2d(layer.weight, layer.bias, int(padding), stride)
    return None


def _known(block: nn.Module) -> bool:
    """Whether a block and all in it are as this package made them."""
    return all(_plain(module) for module in block.modules())


def _plain(module: nn.Module) -> bool:
    if type(module) not in PARTS and type(module) not in REPLACED:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Conv2d) and (module.padding_mode, module.dilation, module.groups) != ("zeros", (1, 1), 1):
        return False
    # Methods of its own, but for what was compiled, which the copy does without.
    own = (value for name, value in vars(module).items() if name != "_compiled_call_impl")
    return not any(callable(value) and not is_compiled(value) for value in own)
