"""The parts of a pipeline, and whether they fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ldm.conditioning.classes import ClassEmbedder
from ldm.conditioning.image.encoders import ImageEncoder, OwnImageConfig
from ldm.conditioning.spatial import Spatial
from ldm.conditioning.text.encoder import TextEncoder
from ldm.conditioning.text.t5 import T5Config
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet


@dataclass
class Parts:
    """All that draws images: of text, of classes, like another image, or of nothing but what it was trained on."""

    autoencoder: Autoencoder
    unet: UNet
    text_encoder: TextEncoder | None
    tokenizer: Tokenizer | None
    diffusion: DiffusionConfig
    text_encoder_2: TextEncoder | None = None  # its context is joined to the first's, and its pooled text is used
    tokenizer_2: Tokenizer | None = None
    classes: ClassEmbedder | None = None
    image_encoder: ImageEncoder | None = None
    spatial: Spatial | None = None  # brings an image beside the latents, to the U-Net's input
    zeros_for_empty_prompt: bool = False  # without a negative prompt, guide away from zeros, not from the empty prompt
    class_names: tuple[str, ...] = ()  # by number; (): nobody named them
    empty_class: int | None = None  # that stands for none, to guide away from

    @property
    def texts(self) -> list[tuple[TextEncoder, Tokenizer]]:
        """The text encoders, each with its tokenizer."""
        pairs = ((self.text_encoder, self.tokenizer), (self.text_encoder_2, self.tokenizer_2))
        return [(encoder, tokenizer) for encoder, tokenizer in pairs if encoder is not None and tokenizer is not None]

    @property
    def networks(self) -> list[nn.Module]:
        """All that has weights."""
        encoders = (self.text_encoder, self.text_encoder_2, self.image_encoder)
        found = (self.autoencoder, self.unet, *encoders, self.classes, self.spatial)
        return [network for network in found if network is not None]

    @property
    def num_classes(self) -> int | None:
        """How many classes it draws; None where it knows none."""
        return self.unet.config.num_class_embeds if self.classes is None else self.classes.config.num_classes

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device


def check_fit(parts: Parts, where: Path) -> None:
    """Raise UserError where one part does not fit another, or needs what no part gives."""
    rows = (*_of_spatial(parts), *_of_networks(parts), *_of_texts(parts), *_of_embeddings(parts))
    for name, size, other, needed in rows:
        if size != needed:
            raise UserError(f"the parts of {where} do not fit: {name}: {size}, {other}: {needed}")
    for encoder, tokenizer in parts.texts:
        if tokenizer.vocab_size > encoder.vocab_size:
            found = f"the tokenizer's vocabulary: {tokenizer.vocab_size}, the text encoder's: {encoder.vocab_size}"
            raise UserError(f"the parts of {where} do not fit: {found}")


Row = tuple[str, object, str, object]  # what is found, and what it must be equal to


def _of_networks(parts: Parts) -> Iterator[Row]:
    unet, latents = parts.unet.config, parts.autoencoder.config.latent_channels
    joined, inputs = 0, "latent channels"
    if parts.spatial is not None:
        joined, inputs = parts.spatial.config.channels, "latent channels and those beside them"
    yield "the U-Net's input channels", unet.in_channels, inputs, latents + joined
    if parts.autoencoder.config.is_pixel_space:
        yield "the channels of images", latents, "those that can be drawn", 3
    channels, kinds = latents, "latent channels"
    if parts.diffusion.learned_variance:
        channels, kinds = 2 * latents, "latent channels and as many learned variances"
    yield "the U-Net's output channels", unet.out_channels, kinds, channels
    widths = [encoder.config.hidden_size for encoder, _ in parts.texts]
    widths += [] if parts.classes is None else [parts.classes.config.hidden_size]
    told = "the width of text" if parts.texts else "the width of classes"
    if parts.image_encoder is not None:
        widths, told = [*widths, parts.image_encoder.config.context_width], "the width of an image's tokens"
        if isinstance(parts.image_encoder.config, OwnImageConfig):
            given = parts.image_encoder.config.in_channels
            yield "the image encoder's input channels", given, "latent channels", latents
    yield "the U-Net's cross_attention_dim", unet.cross_attention_dim, told, sum(widths) or None


def _of_spatial(parts: Parts) -> Iterator[Row]:
    if parts.spatial is None:
        return
    yield "an image to vary", parts.image_encoder is not None, "beside those that join the latents", False
    spatial, autoencoder = parts.spatial.config, parts.autoencoder.config
    if spatial.kind == "segmentation_map":
        factor = autoencoder.downsampling_factor
        yield "the times a map becomes smaller", 2**spatial.stages, "those an image does", factor
        return
    needed, inputs = spatial.in_channels, "channels of the image"
    if spatial.kind == "inpainting":
        needed, inputs = needed + autoencoder.latent_channels, "channels of mask and latents"
    yield "the channels beside the latents", spatial.channels, inputs, needed


def _of_texts(parts: Parts) -> Iterator[Row]:
    for encoder, tokenizer in parts.texts:
        if not isinstance(encoder.config, T5Config):  # which knows distances alone
            yield (
                "the tokenizer's length",
                tokenizer.max_length,
                "the text encoder's positions",
                encoder.config.max_length,
            )
    if len(parts.texts) == 2:
        (_, first), (_, second) = parts.texts
        yield "the tokenizer's length", first.max_length, "the second one's", second.max_length


def _of_embeddings(parts: Parts) -> Iterator[Row]:
    known = (parts.num_classes or 0) - (parts.empty_class is not None)
    if parts.class_names:
        yield "the names of classes", len(parts.class_names), "the classes but the empty one", known
    unet, told = parts.unet.config, bool(parts.texts) or parts.classes is not None
    told = told or parts.image_encoder is not None
    yield "the U-Net's class_embed_type", unet.class_embed_type, "what a pipeline gives it", None
    if told:
        yield "the U-Net's num_class_embeds", unet.num_class_embeds, "what a pipeline gives it", None
    if unet.addition_embed_type is not None:
        pooled = getattr(parts.texts[-1][0].config, "projection_dim", None) if parts.texts else None
        sizes = 6 * (unet.addition_time_embed_dim or 0)
        given = None if pooled is None else pooled + sizes
        asked = unet.projection_class_embeddings_input_dim
        yield "the U-Net's projection_class_embeddings_input_dim", asked, "pooled text and six sizes", given
