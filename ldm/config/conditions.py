"""What a U-Net is told about the image: text or classes, which it attends to, and images joined to its input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, model_validator

from ldm.config.section import ByKind, Count, Section, Width, check_divisible
from ldm.registry import IMAGE_ENCODERS, TEXT_ENCODERS


class TextSection(Section):
    """What all text encoders have: where they come from and how wide their tokens are."""

    kind: str
    source: str | None = None  # a directory or a Hub id to take weights and tokenizer from; None: new weights
    frozen: bool = False  # not trained together with the U-Net
    vocab_size: Width = 1
    max_length: Width = 77  # tokens, special ones included
    hidden_size: Width = 768  # width of the context
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12


class BertConfig(TextSection):
    """A BERT (Devlin et al. 2019); without a source its WordPiece vocabulary is made from the captions."""

    kind: Literal["bert"] = "bert"
    vocab_size: Width = 2048  # upper bound; the tokenizer may find fewer pieces in the captions
    max_length: Width = 32
    hidden_size: Width = 256
    num_hidden_layers: Count = 4
    num_attention_heads: Width = 4
    use_attention_mask: bool = True

    @model_validator(mode="after")
    def _width_divides(self) -> BertConfig:
        if self.source is None or "num_attention_heads" in self.model_fields_set:  # else the source has their number
            check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


class LDMBertConfig(TextSection):
    """The transformer over BERT's tokens of the 1.45-billion-parameter model (Rombach et al. 2022, appendix E.2.1)."""

    kind: Literal["ldm_bert"] = "ldm_bert"
    vocab_size: Width = 30522
    hidden_size: Width = 1280
    num_hidden_layers: Count = 32
    num_attention_heads: Width = 8
    head_width: Width = 64
    tokens: Literal["words", "boxes"] = "words"  # boxes: the tokens of a layout, not of a text; no tokenizer


class CLIPConfig(TextSection):
    """CLIP's text transformer (Radford et al. 2021); the weights of OpenCLIP fit it as well."""

    kind: Literal["clip"] = "clip"
    frozen: bool = True
    vocab_size: Width = 49408
    intermediate_size: Width | None = None  # None: four times the width
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"  # gelu: the models of OpenCLIP
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407  # where the text is pooled: its first place; 2, in old files: at the largest id
    projection_dim: Width | None = None  # width of the pooled text; None: it is not made
    layer: Literal["last", "penultimate"] = "last"  # whose output is the context
    final_norm: bool = True  # whether that output goes through the last layer norm

    @model_validator(mode="after")
    def _width_divides(self) -> CLIPConfig:
        if self.source is None or "num_attention_heads" in self.model_fields_set:  # else the source has their number
            check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


class OpenCLIPConfig(TextSection):
    """A text transformer of open_clip_torch, by the name of its architecture."""

    kind: Literal["open_clip"] = "open_clip"
    frozen: bool = True
    model: str = "ViT-H-14"  # source: a local file of its weights, or the name of published ones
    vocab_size: Width = 49408
    hidden_size: Width = 1024
    num_hidden_layers: Count = 24
    num_attention_heads: Width = 16
    projection_dim: Width | None = None  # width of the pooled text; None: it is not made
    layer: Literal["last", "penultimate"] = "penultimate"
    final_norm: bool = True


class T5Config(TextSection):
    """The encoder of T5 1.1 (Raffel et al. 2020) through transformers."""

    kind: Literal["t5"] = "t5"
    frozen: bool = True
    vocab_size: Width = 32128
    hidden_size: Width = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12
    head_width: Width = 64
    intermediate_size: Width = 2048
    use_attention_mask: bool = True


# A text encoder of any registered kind.
TextConfig = Annotated[SerializeAsAny[TextSection], ByKind(TEXT_ENCODERS, "bert")]


class ClassesConfig(Section):
    """A table with one token a class, which the U-Net attends to (Rombach et al. 2022, section 4.4)."""

    num_classes: int = Field(1000, ge=1)  # rows; with training.unet.condition_dropout the last stands for no class
    hidden_size: Width = Field(512, ge=1)  # width of the context


class SpatialConfig(Section):
    """An image beside the latents, joined to the U-Net's input channels (Rombach et al. 2022, section 4.3).

    `segmentation_map`: a class map, halved `stages` times and projected to `channels` by a 1x1 convolution;
    `inpainting`: the mask of what is to be filled, and the latents of the image without it; `low_resolution`: a
    small image with as many pixels as there are latents.
    """

    kind: Literal["segmentation_map", "inpainting", "low_resolution"]
    in_channels: int = Field(3, ge=1)  # classes of the map, or channels of the mask or the image
    channels: int = Field(3, ge=1)  # that join the latents
    stages: int = Field(0, ge=0)
    names: tuple[str, ...] = ()  # of the map's classes, in the order of their numbers; (): they have none

    @model_validator(mode="after")
    def _names_are_of_classes(self) -> SpatialConfig:
        if self.names and self.kind != "segmentation_map":
            raise ValueError(f"names are those of a map's classes: they mean nothing for kind {self.kind}")
        if self.names and len(self.names) != self.in_channels:
            raise ValueError(f"there are {len(self.names)} names and {self.in_channels} in_channels: one a class")
        return self


class ImageSection(Section):
    """What all encoders of an image have, whose tokens the U-Net attends to instead of a text's."""

    kind: str
    frozen: bool = False  # not trained together with the U-Net

    @property
    def context_width(self) -> int:
        """Width of the tokens that the U-Net attends to."""
        raise NotImplementedError


class OwnImageConfig(ImageSection):
    """A small network over the image's latents that keeps what is to be seen, not where: positions are averaged."""

    kind: Literal["own"] = "own"
    in_channels: Width = 4  # of the latents
    channels: tuple[Width, ...] = Field((64, 128, 256), min_length=1, max_length=8)  # each half as large as the last
    norm_num_groups: Width = 8
    bottleneck: Width = 64  # numbers that are left of an image
    tokens: Width = 8  # made of them
    hidden_size: Width = 192  # width of the context

    @property
    def context_width(self) -> int:
        """The tokens' own."""
        return self.hidden_size

    @model_validator(mode="after")
    def _groups_divide(self) -> OwnImageConfig:
        for width in self.channels:
            check_divisible("channels", width, "norm_num_groups", self.norm_num_groups)
        return self


class CLIPImageConfig(ImageSection):
    """CLIP's image transformer (Radford et al. 2021), whose projected embedding is the one token of the context."""

    kind: Literal["clip"] = "clip"
    source: str | None = None  # a directory or a Hub id to take weights from
    frozen: bool = True
    image_size: Width = 224  # side of the square that it sees
    patch_size: Width = 14
    hidden_size: Width = 1024
    intermediate_size: Width | None = None  # None: four times the width
    num_hidden_layers: Count = 24
    num_attention_heads: Width = 16
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: Width = 768  # width of the context

    @property
    def context_width(self) -> int:
        """That of the projection."""
        return self.projection_dim

    @model_validator(mode="after")
    def _width_divides(self) -> CLIPImageConfig:
        check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        check_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        return self


# An image encoder of any registered kind.
ImageConfig = Annotated[SerializeAsAny[ImageSection], ByKind(IMAGE_ENCODERS, "own")]
