"""Configuration: one YAML file read into nested, frozen, typed sections.

A file names only what differs from the defaults. Unknown keys are refused with their path and the nearest known name,
so that a misspelt option can never be silently ignored.
"""

from ldm.config.classifier import ClassifierConfig
from ldm.config.conditions import (
    BertConfig,
    ClassesConfig,
    CLIPConfig,
    CLIPImageConfig,
    ImageConfig,
    ImageSection,
    LDMBertConfig,
    OpenCLIPConfig,
    OwnImageConfig,
    SpatialConfig,
    T5Config,
    TextConfig,
    TextSection,
)
from ldm.config.data import BucketsConfig, DataConfig, ScenesConfig, ShardsConfig, Size
from ldm.config.diffusion import DiffusionConfig, ScheduleConfig, WeightingConfig
from ldm.config.files import find, load, names
from ldm.config.losses import (
    AdversarialLossConfig,
    CodebookConfig,
    EquivarianceLossConfig,
    KLLossConfig,
    LossConfig,
    PerceptualLossConfig,
    ReconstructionLossConfig,
)
from ldm.config.networks import AutoencoderConfig, UNetConfig
from ldm.config.section import Section, dump, parse
from ldm.config.training import (
    AutoencoderStageConfig,
    ClassifierStageConfig,
    Config,
    StageConfig,
    TrainingConfig,
    UNetStageConfig,
)

__all__ = [
    "AdversarialLossConfig",
    "AutoencoderConfig",
    "AutoencoderStageConfig",
    "BertConfig",
    "BucketsConfig",
    "CLIPConfig",
    "CLIPImageConfig",
    "ClassesConfig",
    "ClassifierConfig",
    "ClassifierStageConfig",
    "CodebookConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EquivarianceLossConfig",
    "ImageConfig",
    "ImageSection",
    "KLLossConfig",
    "LDMBertConfig",
    "LossConfig",
    "OpenCLIPConfig",
    "OwnImageConfig",
    "PerceptualLossConfig",
    "ReconstructionLossConfig",
    "ScenesConfig",
    "ScheduleConfig",
    "Section",
    "ShardsConfig",
    "Size",
    "SpatialConfig",
    "StageConfig",
    "T5Config",
    "TextConfig",
    "TextSection",
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
