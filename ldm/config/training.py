"""Configuration of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ldm.config.section import Section


class StageConfig(Section):
    """The loop of one stage; steps are optimiser steps, `batch_size` is that of all processes together."""

    max_steps: int = Field(100_000, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    gradient_checkpointing: bool = False  # run blocks again in the backward pass: less memory, a third more time
    compile: bool = False  # torch.compile
    # muon: momentum with singular values of one for matrices (Jordan et al. 2024), AdamW for all other weights
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    momentum: float | None = Field(None, ge=0, lt=1)  # of muon's matrices; None: 0.95
    learning_rate: float = 1e-4
    # Other rates of some weights, by the name of a part (unet, text) or a pattern of names (unet.*.attn2.*), and
    # weights that are not trained, named alike. Where several name a weight, the last one holds.
    learning_rates: dict[str, float] = Field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int | None = None  # the last so many steps; None: all after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float | None = 1.0
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    ema_others: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()  # more averages, saved as `step-N/ema-DECAY`
    ema_device: Literal["cpu"] | None = None  # where averages lie; None: with the weights
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    log_every: int = Field(10, ge=1)
    save_every: int = Field(5_000, ge=1)
    sample_every: int = Field(1_000, ge=1)
    keep: int = Field(2, ge=1)  # newest `step-N` directories kept
    keep_best: bool = True  # and the one of the lowest validation loss
    # Images of the fixed draw on which the averaged weights are measured at every save; 0: they are not.
    validation_images: int = Field(64, ge=0, multiple_of=16)

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # as which YAML reads a bare `no`

    @model_validator(mode="after")
    def _momentum_is_of_muon(self) -> StageConfig:
        if self.momentum is not None and self.optimizer != "muon":
            raise ValueError(f"momentum is that of optimizer muon, and this one is {self.optimizer}: its are betas")
        return self


class AutoencoderStageConfig(StageConfig):
    """Training of the autoencoder."""

    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # muon has not been tried against a discriminator
    betas: tuple[float, float] = (0.5, 0.9)
    statistics_images: int = Field(4096, ge=2)  # images over which latent statistics are measured at the end


class UNetStageConfig(StageConfig):
    """Training of the U-Net and, with it, of the text encoder."""

    text_learning_rate: float | None = None  # of the text encoder; None: that of the U-Net
    # Share of samples that are told nothing: the empty prompt, the empty class, zeros in place of an image's tokens.
    condition_dropout: float = Field(0.1, ge=0.0, le=1.0)
    cache_latents: bool = False  # encode each image once before training (no random crop, no flip)
    sample_prompts: tuple[str, ...] = ()  # drawn every `sample_every` steps, by a model of text
    sample_classes: tuple[int | str, ...] = ()  # drawn by one of classes: their numbers or names
    # Drawn by one that is told nothing, that varies an image, or that sees images beside its input.
    sample_images: int = Field(0, ge=0)
    sample_image: str | None = None  # the file of the image that is varied
    sample_guidance_scale: float = 3.0
    sample_steps: int = 30


class ClassifierStageConfig(StageConfig):
    """Training of a classifier on noisy latents."""

    cache_latents: bool = False  # as for the U-Net


class TrainingConfig(Section):
    """All stages and what they share."""

    seed: int = 0
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # besides `log.jsonl`
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    unet: UNetStageConfig = UNetStageConfig()
    classifier: ClassifierStageConfig = ClassifierStageConfig()
