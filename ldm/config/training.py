"""Configuration of training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from ldm.config.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class StageConfig(Section):
    """Options of all stages. Steps are optimizer steps; `batch_size` counts the images of all processes."""

    max_steps: int = Field(100_000, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time
    compile: bool = False  # torch.compile
    # adamw, adamw8bit, muon (Jordan et al. 2024; AdamW for weights that are no inner matrices), or the dotted name of
    # a subclass of torch.optim.Optimizer, such as torch.optim.Adafactor
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = Field(default_factory=dict)  # further arguments of its constructor
    momentum: float | None = Field(None, ge=0, lt=1)  # muon only; null: 0.95
    learning_rate: float = Field(1e-4, ge=0)
    # Other learning rates, by the name of a part (unet, text) or a pattern of names (unet.*.attn2.*); the last pattern
    # that matches a weight applies. `freeze` lists weights that are not trained, in the same way.
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    warmup_steps: int = Field(0, ge=0)
    # constant, cosine, linear, or the dotted name of a function: share of the decay that is done -> factor of the rate
    decay: str = "constant"
    decay_steps: int | None = Field(None, ge=1)  # the decay takes the last steps; null: all after the warm-up
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(1.0, gt=0)
    ema_decay: Share = 0.9999
    ema_others: tuple[Share, ...] = ()  # further averages, saved as `step-N/ema-DECAY`
    ema_device: Literal["cpu"] | None = None  # where averages are kept; null: with the weights
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    log_every: int = Field(10, ge=1)
    save_every: int = Field(5_000, ge=1)
    sample_every: int = Field(1_000, ge=1)
    keep: int = Field(2, ge=1)  # newest `step-N` folders to keep
    keep_best: bool = True  # keep the step of the lowest validation loss, too
    # Images, with fixed noise and levels, on which the averaged weights are validated at every save; 0: none.
    validation_images: int = Field(64, ge=0, multiple_of=16)

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _parse_no(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads a bare `no` as false

    @field_validator("optimizer_options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Check what most optimizers have; their constructors check the rest."""
        if "lr" in options:
            raise ValueError(f"lr is {options['lr']}: set learning_rate instead")
        for name, end in {"betas": 1.0, "momentum": 1.0, "weight_decay": math.inf, "eps": math.inf}.items():
            values = options.get(name, ())
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, int | float) and not 0 <= value < end:
                    raise ValueError(f"{name} is {options[name]}: it must be at least 0 and less than {end:g}")
        return options

    @model_validator(mode="after")
    def _check_momentum(self) -> StageConfig:
        if self.momentum is not None and self.optimizer != "muon":
            raise ValueError(f"momentum is an option of optimizer muon; {self.optimizer} has betas")
        return self


class AutoencoderStageConfig(StageConfig):
    """Training of the autoencoder."""

    betas: tuple[Share, Share] = (0.5, 0.9)
    statistics_images: int = Field(4096, ge=2)  # images over which latent statistics are measured at the end

    @field_validator("optimizer")
    @classmethod
    def _check_optimizer(cls, value: str) -> str:
        if value == "muon":
            raise ValueError("muon is not supported with a discriminator: use adamw or another optimizer")
        return value


class UNetStageConfig(StageConfig):
    """Training of the denoiser and of what is trained together with it, such as the text encoder."""

    text_learning_rate: float | None = Field(None, ge=0)  # of the text encoder; null: `learning_rate`
    # Share of samples whose condition is dropped: the empty prompt, the empty class, zeros for image embeddings.
    condition_dropout: float = Field(0.1, ge=0.0, le=1.0)
    cache_latents: bool = False  # encode each image once, before training (no random crop, no flip)
    sample_prompts: tuple[str, ...] = ()  # of the sample grid of a text-conditional model
    sample_classes: tuple[NonNegativeInt | str, ...] = ()  # of a class-conditional model, by number or name
    # Number of images in the sample grid of models that are unconditional or conditioned on images.
    sample_images: int = Field(0, ge=0)
    sample_image: str | None = None  # file of the image whose variations are sampled
    sample_guidance_scale: float = Field(3.0, ge=0)
    sample_steps: int = Field(30, ge=1)


class ClassifierStageConfig(StageConfig):
    """Training of a classifier on noisy latents."""

    cache_latents: bool = False  # encode each image once, before training


class TrainingConfig(Section):
    """All stages and what they share."""

    seed: int = Field(0, ge=0, lt=2**63)
    trackers: tuple[str, ...] = ()  # experiment trackers of accelerate, such as tensorboard or wandb
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    unet: UNetStageConfig = UNetStageConfig()
    classifier: ClassifierStageConfig = ClassifierStageConfig()

    def of(self, stage: str) -> Any:
        """Return the section of a stage."""
        return getattr(self, stage)
