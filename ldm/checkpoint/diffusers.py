"""Whole pipelines in the layout of diffusers' StableDiffusionPipeline, and where to find a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.checkpoint.fields import DIFFUSERS_VERSION, load_fields
from ldm.checkpoint.networks import write_autoencoder, write_unet
from ldm.checkpoint.pretrained import Autoencoder, UNet
from ldm.checkpoint.scheduler_fields import SCHEDULERS, scheduler_class, scheduler_from_fields, scheduler_to_fields
from ldm.checkpoint.store import save_json
from ldm.checkpoint.texts import load_text_encoder, load_tokenizer, save_text_encoder, save_tokenizer
from ldm.checkpoint.weights import SHARD_SIZE
from ldm.config import DiffusionConfig
from ldm.errors import UserError
from ldm.models import autoencoder as networks
from ldm.models import unet as unets
from ldm.models.text import BertTextEncoder, Tokenizer

# Library and class of each part: what we write, then what else we load.
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "vae": (("diffusers", "AutoencoderKL"),),
    "text_encoder": (("transformers", "BertModel"),),
    "tokenizer": (("transformers", "BertTokenizer"), ("transformers", "BertTokenizerFast")),
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "scheduler": tuple(("diffusers", name) for name in SCHEDULERS),
}
# Parts that a pipeline may have besides; they say nothing about the pictures it draws.
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass
class Parts:
    """All that draws pictures from text."""

    autoencoder: Autoencoder
    unet: UNet
    text_encoder: BertTextEncoder
    tokenizer: Tokenizer
    diffusion: DiffusionConfig


def load_autoencoder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The autoencoder in a folder; UserError if it is not whole or asks for what we do not have."""
    return Autoencoder.from_pretrained(folder, dtype)


def save_autoencoder(autoencoder: networks.Autoencoder, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write an autoencoder to a folder, its weights as `dtype` if given."""
    write_autoencoder(autoencoder, Path(folder), dtype)


def load_unet(folder: str | Path, dtype: torch.dtype = torch.float32) -> UNet:
    """The U-Net in a folder; UserError if it is not whole or asks for what we do not have."""
    return UNet.from_pretrained(folder, dtype)


def save_unet(unet: unets.UNet, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a U-Net to a folder, its weights as `dtype` if given."""
    write_unet(unet, Path(folder), dtype)


def load_scheduler(folder: str | Path) -> DiffusionConfig:
    """Schedule and prediction out of a scheduler's folder; UserError if it asks for what we do not have."""
    path = Path(folder) / "scheduler_config.json"
    return scheduler_from_fields(load_fields(path), path)


def save_scheduler(diffusion: DiffusionConfig, folder: str | Path) -> None:
    """Write schedule and prediction as a scheduler's folder; UserError for what no scheduler of diffusers has."""
    save_json(Path(folder) / "scheduler_config.json", scheduler_to_fields(diffusion))


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """All parts of a pipeline, on the CPU and in evaluation mode; UserError if it is not whole or not of our kinds."""
    folder = Path(folder)
    _check_index(folder)
    parts = Parts(
        load_autoencoder(folder / "vae", dtype),
        load_unet(folder / "unet", dtype),
        load_text_encoder(folder / "text_encoder", dtype),
        load_tokenizer(folder / "tokenizer"),
        load_scheduler(folder / "scheduler"),
    )
    _check_fit(parts, folder)
    return parts


def _check_fit(parts: Parts, folder: Path) -> None:
    unet, text = parts.unet.config, parts.text_encoder.config
    channels, kinds = parts.autoencoder.config.latent_channels, "latent channels"
    if parts.diffusion.learned_variance:
        channels, kinds = 2 * channels, "latent channels and as many learned variances"
    for name, size, other, needed in (
        ("the U-Net's output channels", unet.out_channels, kinds, channels),
        ("the U-Net's cross_attention_dim", unet.cross_attention_dim, "the text encoder's width", text.hidden_size),
        ("the tokenizer's length", parts.tokenizer.max_length, "the text encoder's positions", text.max_length),
        ("the tokenizer's vocabulary", parts.tokenizer.vocab_size, "the text encoder's", parts.text_encoder.vocab_size),
    ):
        if size != needed:
            raise UserError(f"the parts of {folder} do not fit: {name}: {size}, {other}: {needed}")


def _check_index(folder: Path) -> None:
    path = folder / "model_index.json"
    if not path.is_file() and (folder / "vae").is_dir():
        raise UserError(f"{folder} holds an autoencoder but no whole pipeline: train a U-Net on it with ldm train-unet")
    index = load_fields(path)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(f"{path} is of a {index.get('_class_name')}; ldm loads StableDiffusionPipeline")
    for name, kinds in PARTS.items():
        if index.get(name) not in [list(kind) for kind in kinds]:
            raise UserError(
                f"{path}: the part {name} is {index.get(name)}; ldm loads {' or '.join(k[1] for k in kinds)}"
            )
    for name in index.keys() - PARTS.keys() - set(OPTIONAL):
        if not name.startswith("_") and name != "requires_safety_checker":
            raise UserError(f"{path}: ldm does not know the part {name}")


def save_pipeline(
    parts: Parts, folder: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write all parts, weights as `dtype` if given; `model_index.json` is removed first and written last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    write_autoencoder(parts.autoencoder, folder / "vae", dtype, shard_size)
    write_unet(parts.unet, folder / "unet", dtype, shard_size)
    save_text_encoder(parts.text_encoder, folder / "text_encoder", dtype, shard_size)
    save_tokenizer(parts.tokenizer, folder / "tokenizer")
    save_scheduler(parts.diffusion, folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        **{name: list(kinds[0]) for name, kinds in PARTS.items()},
        "scheduler": ["diffusers", scheduler_class(parts.diffusion)],
        **{name: [None, None] for name in OPTIONAL},
        "requires_safety_checker": False,
    }
    save_json(folder / "model_index.json", index)


def resolve(model: str | Path) -> Path:
    """The folder of a model: a run, a directory in diffusers layout, a built-in name, or a Hub id.

    A run without `model_index.json` at its top means its newest step. Raises UserError when it is none of them.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _newest(folder)
    built_in = _weights_folder() / str(model)
    if re.fullmatch(r"[\w.-]+", str(model)) and built_in.is_dir():
        return built_in
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return _from_hub(str(model))
    raise _unknown(model)


def find_autoencoder(model: str | Path) -> Path:
    """The autoencoder's folder of a run or a pipeline, or the folder itself; UserError when there is none."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    resolved = resolve(model)
    if (resolved / "config.json").is_file():
        return resolved
    for name in ("vae", "vqvae"):
        if (resolved / name).is_dir():
            return resolved / name
    raise UserError(f"{resolved} holds no autoencoder: neither config.json nor vae/ nor vqvae/")


def step_folders(run: Path) -> list[Path]:
    """The `step-N` folders of a run, oldest first."""
    steps = [path for path in run.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _newest(folder: Path) -> Path:
    steps = step_folders(folder)
    return folder if (folder / "model_index.json").is_file() or not steps else steps[-1]


def _weights_folder() -> Path:
    import ldm.weights

    return Path(next(iter(ldm.weights.__path__)))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # What is in the parts' folders, or that of a single autoencoder; no single-file checkpoints beside them.
    wanted = ["model_index.json", "config.json", "diffusion_pytorch_model.*", "*/*.json", "*/*.safetensors", "*/*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unknown(name, f" ({type(error).__name__} from the Hub)") from error


def _unknown(model: str | Path, why: str = "") -> UserError:
    names = sorted(path.name for path in _weights_folder().iterdir() if (path / "model_index.json").is_file())
    built_in = f"a built-in model ({', '.join(names) or 'none is installed'})"
    return UserError(f"no model {str(model)!r}: neither a run, a diffusers directory, {built_in}, nor a Hub id{why}")
