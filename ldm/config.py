"""Configuration: one YAML file read into nested, frozen, typed sections.

A file names only what differs from the defaults below. Unknown keys are refused with their path and the nearest known
name, so that a misspelt option can never be silently ignored.
"""

from __future__ import annotations

import contextlib
import difflib
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ldm.errors import UserError


class Section(BaseModel):
    """A frozen group of options that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = typing.TypeVar("S", bound=Section)


# --- networks ---------------------------------------------------------------------------------------------------------


class AutoencoderConfig(Section):
    """The first stage; every level but the last halves the picture, so f = 2 ** (levels - 1)."""

    kind: Literal["kl"] = "kl"
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_attention: bool = True
    sample_size: int = 64  # side of the pictures it was trained on, pixels
    # Latent statistics: latents = (z - shift_factor) * scaling_factor. None: not measured yet.
    scaling_factor: float | tuple[float, ...] | None = None
    shift_factor: float | tuple[float, ...] | None = None
    statistics: Literal["tensor", "channel"] = "tensor"  # what training measures at its end

    @model_validator(mode="after")
    def _widths_divide(self) -> AutoencoderConfig:
        for width in self.block_out_channels:
            _check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
        return self

    @property
    def downsampling_factor(self) -> int:
        """How many pixels one latent position stands for, along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))


class TextConfig(Section):
    """The text encoder: a WordPiece vocabulary made from the captions and a BERT trained together with the U-Net."""

    kind: Literal["bert"] = "bert"
    vocab_size: int = 2048  # upper bound; the tokenizer may find fewer pieces in the captions
    max_length: int = 32  # tokens, [CLS] and [SEP] included
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    use_attention_mask: bool = True

    @model_validator(mode="after")
    def _width_divides(self) -> TextConfig:
        _check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


class UNetConfig(Section):
    """The denoising U-Net; tuples have one entry a level, finest first."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 16  # side of the latents it was trained on
    block_out_channels: tuple[int, ...] = (128, 256, 384)
    layers_per_block: int = 2
    transformer_layers: tuple[int, ...] = (1, 1, 1)  # transformer blocks after each ResNet of a level; 0: none
    num_attention_heads: int | tuple[int, ...] = 8
    cross_attention_dim: int = 256
    use_linear_projection: bool = True
    norm_num_groups: int = 32
    dropout: float = 0.0

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetConfig:
        levels = len(self.block_out_channels)
        if len(self.transformer_layers) != levels:
            raise ValueError(f"transformer_layers has {len(self.transformer_layers)} entries for {levels} levels")
        if isinstance(self.num_attention_heads, tuple) and len(self.num_attention_heads) != levels:
            raise ValueError(f"num_attention_heads has {len(self.num_attention_heads)} entries for {levels} levels")
        attends = [*self.transformer_layers[:-1], True]  # the mid block below the last level always does
        for width, heads, layers in zip(self.block_out_channels, self.heads, attends, strict=True):
            _check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
            if layers:
                _check_divisible("block_out_channels", width, "num_attention_heads", heads)
        return self

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each level."""
        if isinstance(self.num_attention_heads, tuple):
            return self.num_attention_heads
        return (self.num_attention_heads,) * len(self.block_out_channels)


def _check_divisible(name: str, value: int, by_name: str, by: int) -> None:
    if by < 1 or value < 1 or value % by:
        raise ValueError(f"{name} {value} is not divisible by {by_name} {by}")


# --- diffusion --------------------------------------------------------------------------------------------------------


class ScheduleConfig(Section):
    """The noise levels: betas over `num_train_timesteps`, by default Stable Diffusion's."""

    kind: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    num_train_timesteps: int = Field(1000, ge=2)
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False


class WeightingConfig(Section):
    """How much each noise level counts in the loss."""

    kind: Literal["uniform", "min_snr"] = "uniform"
    gamma: float = 5.0  # min_snr: SNR above which levels count no more


class DiffusionConfig(Section):
    """Schedule, what the network regresses, and how levels are weighted."""

    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Literal["eps", "x0", "v", "flow"] = "eps"
    weighting: WeightingConfig = WeightingConfig()

    @model_validator(mode="after")
    def _eps_needs_signal(self) -> DiffusionConfig:
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction eps says nothing about the picture where alpha is 0: with schedule.zero_terminal_snr "
                "use prediction v, x0 or flow"
            )
        return self


# --- the autoencoder's loss -------------------------------------------------------------------------------------------


class ReconstructionLossConfig(Section):
    """Distance between a picture and its reconstruction, per value."""

    kind: Literal["l1", "l2"] = "l1"
    learned_log_variance: bool = False  # divide by a learned variance, add its logarithm
    initial_log_variance: float = 0.0


class KLLossConfig(Section):
    """Kullback-Leibler divergence of the posterior from a unit normal, summed over a latent."""

    weight: float = 1e-6


class PerceptualLossConfig(Section):
    """LPIPS (Zhang et al. 2018) through the `lpips` package; its backbone's weights must be on this machine."""

    weight: float = 1.0
    net: Literal["vgg", "alex", "squeeze"] = "vgg"


class AdversarialLossConfig(Section):
    """Patch discriminator (Isola et al. 2017) and how it joins the loss (Esser et al. 2021)."""

    weight: float = 0.5
    kind: Literal["hinge", "vanilla"] = "hinge"
    start_step: int = 50_000
    adaptive: bool = True  # scale by the ratio of gradient norms at the decoder's last layer
    discriminator_layers: int = 3
    discriminator_channels: int = 64
    discriminator_norm: Literal["batch", "group", "none"] = "batch"
    learning_rate: float | None = None  # None: that of the autoencoder


class LossConfig(Section):
    """What the autoencoder minimises."""

    reconstruction: ReconstructionLossConfig = ReconstructionLossConfig()
    kl: KLLossConfig = KLLossConfig()
    perceptual: PerceptualLossConfig = PerceptualLossConfig()
    adversarial: AdversarialLossConfig = AdversarialLossConfig()


# --- data and training ------------------------------------------------------------------------------------------------


class ScenesConfig(Section):
    """The built-in data set, used where `--data scenes` is given."""

    num: int = Field(20_000, ge=1)
    seed: int = 0
    concepts: int | None = None  # only the first so many of the list, the most recognisable ones; None: all


class DataConfig(Section):
    """How pictures are made ready."""

    size: int = Field(64, ge=1)  # side in pixels, after a resize of the shorter side and a crop
    random_crop: bool = False
    random_flip: bool = False
    workers: int = Field(0, ge=0)  # loader processes; 0 loads in the training process
    scenes: ScenesConfig = ScenesConfig()


class StageConfig(Section):
    """The loop of one stage; steps are optimiser steps, `batch_size` is that of all processes together."""

    max_steps: int = Field(100_000, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int | None = None  # the last so many steps; None: all after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float | None = 1.0
    ema_decay: float = 0.9999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    log_every: int = Field(10, ge=1)
    save_every: int = Field(5_000, ge=1)
    sample_every: int = Field(1_000, ge=1)
    keep: int = Field(2, ge=1)  # newest `step-N` directories kept


class AutoencoderStageConfig(StageConfig):
    """Training of the autoencoder."""

    betas: tuple[float, float] = (0.5, 0.9)
    statistics_pictures: int = Field(4096, ge=2)  # pictures over which latent statistics are measured at the end


class UNetStageConfig(StageConfig):
    """Training of the U-Net and, with it, of the text encoder."""

    text_learning_rate: float | None = None  # of the text encoder; None: that of the U-Net
    condition_dropout: float = Field(0.1, ge=0.0, le=1.0)  # share of captions replaced by the empty prompt
    cache_latents: bool = False  # encode each picture once before training (no random crop, no flip)
    sample_prompts: tuple[str, ...] = ()
    sample_guidance_scale: float = 3.0
    sample_steps: int = 30


class TrainingConfig(Section):
    """Both stages and what they share."""

    seed: int = 0
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    unet: UNetStageConfig = UNetStageConfig()


class Config(Section):
    """One file: everything that both trainers need."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        if self.unet.out_channels != self.autoencoder.latent_channels:
            raise ValueError(
                f"unet.out_channels is {self.unet.out_channels}, autoencoder.latent_channels is "
                f"{self.autoencoder.latent_channels}: they must be equal"
            )
        if self.unet.cross_attention_dim != self.text.hidden_size:
            raise ValueError(
                f"unet.cross_attention_dim is {self.unet.cross_attention_dim}, text.hidden_size is "
                f"{self.text.hidden_size}: they must be equal"
            )
        if self.data.size % self.autoencoder.downsampling_factor:
            raise ValueError(
                f"data.size {self.data.size} is not divisible by the autoencoder's downsampling factor "
                f"{self.autoencoder.downsampling_factor}"
            )
        return self


# --- reading ----------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Names of the configurations that are installed with the package, such as `tiny` or `emoji`."""
    folder = _folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def load(source: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a configuration by name or path and apply `a.b=c` overrides (values are YAML).

    Raises UserError when there is no such file, it is not YAML, or an option is unknown or ill-typed.
    """
    path = find(source)
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of sections, not a {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return parse(tree, Config, str(path))


def find(source: str | Path) -> Path:
    """The path of a configuration given by name or path."""
    path = Path(source)
    if path.is_file():
        return path
    named = _folder() / f"{source}.yaml"
    if named.is_file():
        return named
    raise UserError(f"no configuration {str(source)!r}: neither a file nor one of {', '.join(names())}")


def parse(tree: dict[str, Any], section: type[S], where: str) -> S:
    """Validate a tree of plain values; every problem becomes one line that names the option's path."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, section)}") from None


def dump(config: Section) -> str:
    """The configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _folder() -> Path:
    import ldm.configs

    return Path(next(iter(ldm.configs.__path__)))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected name.of.option=value")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is an option, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {value!r} is not a YAML value") from None
    if isinstance(node[last], str):  # YAML 1.1 reads 1e-4 as a word
        with contextlib.suppress(ValueError):
            node[last] = float(node[last])


def _explain(error: ValidationError, section: type[Section]) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields(section, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown option {path!r}; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def _fields(section: type[Section], path: typing.Sequence[int | str]) -> list[str]:
    for part in path:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
    return list(section.model_fields)
