"""The whole of a configuration."""

from __future__ import annotations

import math

from pydantic import model_validator

from ldm.conditioning.classes import ClassesConfig
from ldm.conditioning.image.encoders import CLIPImageConfig, ImageConfig, OwnImageConfig
from ldm.conditioning.spatial import SpatialConfig
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import TextConfig
from ldm.config.classifier import ClassifierConfig
from ldm.config.data import DataConfig, Size
from ldm.config.diffusion import DiffusionConfig
from ldm.config.losses import LossConfig, check_losses, latent_multiples
from ldm.config.section import Section
from ldm.config.training import TrainingConfig
from ldm.errors import UserError
from ldm.models.autoencoder.config import AnyAutoencoderConfig, AutoencoderConfig
from ldm.models.unet.config import UNetConfig


class Config(Section):
    """One file: everything that both trainers need."""

    autoencoder: AnyAutoencoderConfig = AutoencoderConfig()
    text: TextConfig | None = BertConfig()  # null: the model is not told about the image in words
    text_2: TextConfig | None = None  # a second encoder, whose tokens are joined to the first's, width to width
    classes: ClassesConfig | None = None  # in place of text
    image: ImageConfig | None = None  # in place of text: an image whose variations are drawn
    spatial: SpatialConfig | None = None
    unet: UNetConfig | None = UNetConfig()  # null: the file describes an autoencoder alone, or a classifier
    classifier: ClassifierConfig | None = None  # of noisy latents, to guide a model by; in a file without a U-Net
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    def need_unet(self) -> UNetConfig:
        """The U-Net's section; UserError in a file that describes an autoencoder alone."""
        if self.unet is None:
            raise UserError(
                "this configuration describes an autoencoder alone (unet: null): there is no U-Net to train"
            )
        return self.unet

    def need_classifier(self) -> ClassifierConfig:
        """The classifier's section; UserError in a file that has none."""
        if self.classifier is None:
            raise UserError("this configuration has no section classifier: there is no classifier to train")
        return self.classifier

    @property
    def told(self) -> tuple[str, ...]:
        """What the U-Net is told: names of sections, `class_table` where it has a table of its own, or `nothing`.

        `spatial` goes by its kind.
        """
        kinds: dict[str, Section | int | None] = {
            "text": self.text,
            "text_2": self.text_2,
            "classes": self.classes,
            "image": self.image,
        }
        if self.spatial is not None:
            kinds[self.spatial.kind] = self.spatial
        kinds["class_table"] = None if self.unet is None else self.unet.num_class_embeds
        return tuple(name for name, section in kinds.items() if section is not None) or ("nothing",)

    @property
    def tells_classes(self) -> bool:
        """Whether the class of each image is needed, to tell it to the U-Net or to learn it."""
        return self.classifier is not None or bool({"classes", "class_table"} & set(self.told))

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if self.unet is None:
            self._nothing_is_conditioned()
        else:
            self._channels_fit(self.unet)
            self._context_fits(self.unet)
        if self.classifier is not None:
            self._classifier_fits(self.classifier)
        if self.spatial is not None:
            self._spatial_fits(self.spatial)
        if isinstance(self.image, OwnImageConfig) and self.image.in_channels != self.autoencoder.latent_channels:
            raise ValueError(
                f"image.in_channels is {self.image.in_channels}, autoencoder.latent_channels is "
                f"{self.autoencoder.latent_channels}: they must be equal"
            )
        if self.image is not None and self.spatial is not None:
            raise ValueError("image and spatial would need two images to draw one: set one of them to null")
        self._data_is_told()
        if self.data.size % self.autoencoder.downsampling_factor:
            raise ValueError(
                f"data.size {self.data.size} is not divisible by the autoencoder's downsampling factor "
                f"{self.autoencoder.downsampling_factor}"
            )
        check_losses(self)
        return self

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """Heights and widths of the images in training: the square, and the buckets that both networks can take."""
        halvings = 1 if self.unet is None else self.unet.multiple
        return self.data.sizes(self.autoencoder.downsampling_factor * math.lcm(halvings, *latent_multiples(self)))

    def _nothing_is_conditioned(self) -> None:
        for name in ("text", "text_2", "classes", "image", "spatial"):
            if getattr(self, name) is not None:
                raise ValueError(f"there is no unet that {name} could tell anything: set {name} to null as well")

    def _channels_fit(self, unet: UNetConfig) -> None:
        latent, joined = self.autoencoder.latent_channels, 0 if self.spatial is None else self.spatial.channels
        if unet.in_channels != latent + joined:
            raise ValueError(
                f"unet.in_channels is {unet.in_channels}; it must be autoencoder.latent_channels, {latent}"
                + (f", and spatial.channels, {joined}" if joined else "")
            )
        needed, rule = latent, "they must be equal"
        if self.diffusion.learned_variance:
            needed, rule = 2 * latent, "with diffusion.learned_variance it must be twice that"
        if unet.out_channels != needed:
            raise ValueError(
                f"unet.out_channels is {unet.out_channels}, autoencoder.latent_channels is {latent}: {rule}"
            )

    def _classifier_fits(self, classifier: ClassifierConfig) -> None:
        latent = self.autoencoder.latent_channels
        if self.unet is not None:
            raise ValueError("a file describes a U-Net or a classifier: set unet to null, or classifier")
        if classifier.in_channels != latent:
            raise ValueError(
                f"classifier.in_channels is {classifier.in_channels}, autoencoder.latent_channels {latent}: "
                "they must be equal"
            )

    def _spatial_fits(self, spatial: SpatialConfig) -> None:
        latent = self.autoencoder.latent_channels
        made, rule = {
            "inpainting": (latent + spatial.in_channels, f"autoencoder.latent_channels, {latent}, and its in_channels"),
            "low_resolution": (spatial.in_channels, "its in_channels"),
            "segmentation_map": (spatial.channels, ""),
        }[spatial.kind]
        if spatial.channels != made:
            raise ValueError(
                f"spatial.channels is {spatial.channels}; with kind {spatial.kind} it must be {rule}: {made}"
            )
        if spatial.stages and spatial.kind != "segmentation_map":
            raise ValueError(f"spatial.stages means something for kind segmentation_map alone, not for {spatial.kind}")
        factor = self.autoencoder.downsampling_factor
        if spatial.kind == "low_resolution" and factor == 1:
            raise ValueError("spatial.kind low_resolution needs an autoencoder: pixels are as many as in the image")
        if spatial.kind == "segmentation_map" and 2**spatial.stages != factor:
            raise ValueError(
                f"spatial.stages is {spatial.stages}: a map must become {factor} times smaller, as latents"
            )

    def _data_is_told(self) -> None:
        """What is made ready of the data is what the U-Net is told."""
        kind = None if self.spatial is None else self.spatial.kind
        classes = self.spatial.in_channels if self.spatial is not None and kind == "segmentation_map" else None
        if self.data.map_classes not in (None, classes):
            needed = (
                "means something for spatial.kind segmentation_map alone" if classes is None else f"must be {classes}"
            )
            raise ValueError(f"data.map_classes {needed}: it is {self.data.map_classes}")
        if self.data.low_res_noise_std and kind != "low_resolution":
            raise ValueError("data.low_res_noise_std means something for spatial.kind low_resolution alone")

    def _context_fits(self, unet: UNetConfig) -> None:
        given = {"text": self.text, "text_2": self.text_2, "classes": self.classes}
        widths = {name: section.hidden_size for name, section in given.items() if section is not None}
        widths |= {} if self.image is None else {"image": self.image.context_width}
        for name in ("classes", "image"):
            if name in widths and len(widths) > 1:
                others = " and ".join(other for other in widths if other != name)
                raise ValueError(f"{name} takes the place of {others}: set {others} to null")
        if "text_2" in widths and "text" not in widths:
            raise ValueError("text_2 is a second text encoder: there must be text as well")
        if (sum(widths.values()) or None) != unet.cross_attention_dim:
            options = {"image": "projection_dim"} if isinstance(self.image, CLIPImageConfig) else {}
            told = (f"{name}.{options.get(name, 'hidden_size')} {width}" for name, width in widths.items())
            found = " + ".join(told) or "no text or classes"
            raise ValueError(
                f"unet.cross_attention_dim is {unet.cross_attention_dim}, the context has {found}: they must be equal"
            )
