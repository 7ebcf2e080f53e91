"""Configuration: one YAML file read into nested, frozen, typed sections.

A file names only what differs from the defaults. Unknown keys are refused with their path and the nearest known name,
so that a misspelt option can never be silently ignored.
"""

from ldm.config.diffusion import DiffusionConfig, ScheduleConfig, WeightingConfig
from ldm.config.files import find, load, names
from ldm.config.losses import (
    AdversarialLossConfig,
    EquivarianceLossConfig,
    KLLossConfig,
    LossConfig,
    PerceptualLossConfig,
    ReconstructionLossConfig,
)
from ldm.config.networks import AutoencoderConfig, TextConfig, UNetConfig
from ldm.config.section import Section, dump, parse
from ldm.config.training import (
    AutoencoderStageConfig,
    Config,
    DataConfig,
    ScenesConfig,
    StageConfig,
    TrainingConfig,
    UNetStageConfig,
)

__all__ = [
    "AdversarialLossConfig",
    "AutoencoderConfig",
    "AutoencoderStageConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EquivarianceLossConfig",
    "KLLossConfig",
    "LossConfig",
    "PerceptualLossConfig",
    "ReconstructionLossConfig",
    "ScenesConfig",
    "ScheduleConfig",
    "Section",
    "StageConfig",
    "TextConfig",
    "TrainingConfig",
    "UNetConfig",
    "UNetStageConfig",
    "WeightingConfig",
    "dump",
    "find",
    "load",
    "names",
    "parse",
]
