"""Image encoders for image variations: networks whose tokens replace the context of a text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.text.clip import Layer
from ldm.conditioning.text.encoder import initialise
from ldm.config.section import ByKind, Count, Section, Width, check_divisible
from ldm.registry import IMAGE_ENCODERS


class ImageSection(Section):
    """What all encoders of an image have, whose tokens the U-Net attends to instead of a text's."""

    kind: str
    frozen: bool = False  # not trained together with the U-Net

    takes_latents: ClassVar[bool] = False  # scaled latents of the frozen autoencoder, instead of pixels
    width_option: ClassVar[str] = "hidden_size"  # the option with the width of the context

    @property
    def context_width(self) -> int:
        """Width of the context."""
        return int(getattr(self, self.width_option))

    @property
    def side(self) -> int:
        """Side of the square that an encoder of pixels sees."""
        return int(getattr(self, "image_size", 0))

    def check_latents(self, channels: int) -> None:
        """Raise ValueError unless the encoder fits latents of so many channels."""
        return


class OwnImageConfig(ImageSection):
    """A small network over the image's latents that keeps what is to be seen, not where: positions are averaged."""

    kind: Literal["own"] = "own"
    takes_latents: ClassVar[bool] = True
    in_channels: Width = 4  # of the latents
    channels: tuple[Width, ...] = Field((64, 128, 256), min_length=1, max_length=8)  # each half as large as the last
    norm_num_groups: Width = 8
    bottleneck: Width = 64  # numbers that are left of an image
    tokens: Width = 8  # made of them
    hidden_size: Width = 192  # width of the context

    def check_latents(self, channels: int) -> None:
        """Raise ValueError unless the encoder fits latents of so many channels."""
        if self.in_channels != channels:
            raise ValueError(
                f"image.in_channels is {self.in_channels}, but autoencoder.latent_channels is {channels}: "
                "they must be equal"
            )

    @model_validator(mode="after")
    def _groups_divide(self) -> OwnImageConfig:
        for width in self.channels:
            check_divisible("channels", width, "norm_num_groups", self.norm_num_groups)
        return self


class CLIPImageConfig(ImageSection):
    """CLIP's image transformer (Radford et al. 2021), whose projected embedding is the one token of the context."""

    kind: Literal["clip"] = "clip"
    width_option: ClassVar[str] = "projection_dim"
    source: str | None = None  # a directory or a Hub id to take weights from
    frozen: bool = True
    image_size: Width = 224  # side of the square that it sees
    patch_size: Width = 14
    hidden_size: Width = 1024
    intermediate_size: Width | None = None  # None: four times the width
    num_hidden_layers: Count = 24
    num_attention_heads: Width = 16
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = Field(1e-5, gt=0, lt=1)
    projection_dim: Width = 768  # width of the context

    @model_validator(mode="after")
    def _width_divides(self) -> CLIPImageConfig:
        check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        check_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        return self


# An image encoder of any registered kind.
ImageConfig = Annotated[SerializeAsAny[ImageSection], ByKind(IMAGE_ENCODERS, "own")]


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of red, green, blue


class ImageEncoder(nn.Module, ABC):
    """A network from an image to a context, described by its configuration alone."""

    section: ClassVar[type[ImageSection]]
    part: ClassVar[tuple[str, str]]  # library and class, as in `model_index.json`
    further_parts: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @property
    def takes_latents(self) -> bool:
        """Whether the input is latents instead of pixels."""
        return self.config.takes_latents

    def __init__(self, config: ImageSection) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, given: Tensor) -> Tensor:
        """Map latents (B, C, h, w), or images (B, 3, H, W) in [-1, 1], to the context (B, L, D)."""


class OwnImageEncoder(ImageEncoder):
    """Convolutions over latents, averaged over all positions, through a bottleneck to some tokens.

    The averages know what is in an image and hardly where, and the bottleneck has not enough numbers to copy the rest:
    so that the generated image is another image of the same objects. The tokens are normalized, like a BERT's.
    """

    section = OwnImageConfig
    part = ("ldm", "ImageEncoder")
    config: OwnImageConfig

    def __init__(self, config: OwnImageConfig) -> None:
        super().__init__(config)
        first, last = config.channels[0], config.channels[-1]
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down = nn.ModuleList(_halving(*widths, config.norm_num_groups) for widths in pairwise(config.channels))
        self.norm = nn.GroupNorm(config.norm_num_groups, last)
        self.bottleneck = nn.Linear(2 * last, config.bottleneck)
        self.tokens = nn.Linear(config.bottleneck, config.tokens * config.hidden_size)
        self.norm_out = nn.LayerNorm(config.hidden_size)

    def forward(self, given: Tensor) -> Tensor:
        """Map latents (B, C, h, w) of any size to the context (B, L, D)."""
        h = self.conv_in(given)
        for block in self.down:
            h = block(h)
        h = F.silu(self.norm(h)).flatten(2)  # (B, C, positions)
        h = self.bottleneck(torch.cat([h.mean(-1), h.amax(-1)], dim=1))  # how much there is, and whether at all
        return self.norm_out(self.tokens(h).unflatten(1, (self.config.tokens, -1)))


def _halving(width: int, wider: int, groups: int) -> nn.Sequential:
    """Return a convolution to more channels and half the sides."""
    return nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, wider, 3, stride=2, padding=1))


class CLIPImageEncoder(ImageEncoder):
    """CLIP's image transformer (Radford et al. 2021, section 2.4): its projected embedding is one token.

    So are the variations of Stable Diffusion by Pinkney (2022). Parameters are named as in the files of transformers'
    `CLIPVisionModelWithProjection`, and the numbers are the same.
    """

    section = CLIPImageConfig
    part = ("transformers", "CLIPVisionModelWithProjection")
    further_parts: ClassVar[Mapping[str, tuple[str, str]]] = {"processor": ("transformers", "CLIPImageProcessor")}
    config: CLIPImageConfig

    def __init__(self, config: CLIPImageConfig) -> None:
        super().__init__(config)
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.apply(initialise)

    def forward(self, given: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [-1, 1], scaled to the square that it sees where they are others, to (B, 1, D)."""
        return self.visual_projection(self.vision_model(_seen(given, self.config.image_size)))[:, None]


class VisionTransformer(nn.Module):
    """Patches and a token of the class through all layers; that token, normalised, is what comes out."""

    def __init__(self, config: CLIPImageConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, config.layer_norm_eps)  # as OpenAI and transformers have misspelt it
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) to (B, D)."""
        tokens = self.pre_layrnorm(self.embeddings(images))
        for layer in self.encoder["layers"]:
            tokens = layer(tokens)
        return self.post_layernorm(tokens[:, 0])


class Embeddings(nn.Module):
    """A token a patch, before them one for all, and their places."""

    def __init__(self, config: CLIPImageConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to (B, 1 + patches, D)."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


def _seen(images: Tensor, side: int) -> Tensor:
    """Prepare images in [-1, 1] for CLIP: scale them to a square of `side` and normalize them."""
    if images.shape[-2:] != (side, side):
        scaled = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
        images = scaled.clamp(-1, 1).to(images.dtype)
    mean, deviation = (images.new_tensor(three).view(3, 1, 1) for three in (CLIP_MEAN, CLIP_STD))
    return ((images + 1) / 2 - mean) / deviation


def make_image_encoder(config: ImageSection) -> ImageEncoder:
    """Create the network of a section, with new weights."""
    return IMAGE_ENCODERS[config.kind](config)
