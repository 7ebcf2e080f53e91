"""Configuration -> objects; the only place that maps a `kind` to a class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator

from ldm.checkpoint.diffusers import Parts, find_autoencoder, load_autoencoder, load_pipeline, resolve
from ldm.checkpoint.pretrained import Autoencoder, UNet
from ldm.checkpoint.scheduler_fields import scheduler_to_fields
from ldm.config import BertConfig, Config, Section
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.perceptual import backbone_state
from ldm.models.text import BertTextEncoder, Tokenizer
from ldm.training.autoencoder import AutoencoderStage
from ldm.training.latents import MomentsCache
from ldm.training.optimizer import check_optimizer
from ldm.training.run import Run
from ldm.training.trackers import check_trackers
from ldm.training.unet import UNetStage


def check(stage: str, config: Config, run: Run, vae: str | None = None, init: str | None = None) -> None:
    """Raise UserError for what a stage will miss, before any time is spent on the data."""
    check_optimizer(getattr(config.training, stage))
    check_trackers(config.training.trackers)
    if stage == "autoencoder":
        if config.loss.perceptual.weight:
            backbone_state(config.loss.perceptual.net)
        if init is not None:
            find_autoencoder(init)
        return
    _text(config)
    scheduler_to_fields(config.diffusion)  # refuses what could be trained but not saved
    if init is not None:
        resolve(init)
    if vae is not None:
        find_autoencoder(vae)
    elif init is None and not run.steps():
        raise UserError(
            "train-unet needs an autoencoder: --vae (a train-vae run, a pipeline or an autoencoder's folder)"
        )


def autoencoder_stage(
    config: Config, source: Source, accelerator: Accelerator, init: str | None = None
) -> AutoencoderStage:
    """A new autoencoder, or that of `init`, and all that trains it."""
    sized = config.autoencoder.model_copy(update={"sample_size": config.data.size})
    if init is None:
        return AutoencoderStage(Autoencoder(sized), config, accelerator, source)
    autoencoder = load_autoencoder(find_autoencoder(init))
    _check_same(autoencoder.config, sized, "autoencoder", init)
    autoencoder.config = sized  # its latent statistics are measured anew
    return AutoencoderStage(autoencoder, config, accelerator, source)


def unet_stage(
    config: Config, source: Source, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> UNetStage:
    """A new U-Net and text encoder, or those of `init`, on the latents of the autoencoder `vae`, ready to train."""
    parts = _initial_parts(config, source, accelerator, run, vae, init)
    cache = None
    if config.training.unet.cache_latents:
        autoencoder = parts.autoencoder.to(accelerator.device, memory_format=torch.channels_last).eval()
        cache = MomentsCache(run.path, autoencoder, source, config.data.size, accelerator)
    return UNetStage(parts, config, accelerator, cache)


def _initial_parts(
    config: Config, source: Source, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> Parts:
    steps = run.steps()
    if steps:  # a resumed run: its own autoencoder and tokenizer; the weights follow from its state
        saved = load_pipeline(steps[-1])
        if vae is not None:
            _check_weights(load_autoencoder(find_autoencoder(vae)), saved.autoencoder, vae, run)
        _check_networks(saved, config, str(steps[-1]))
        return _new_parts(config, saved.autoencoder, saved.tokenizer)
    if init is not None:
        parts = load_pipeline(resolve(init))
        autoencoder = load_autoencoder(find_autoencoder(vae)) if vae else parts.autoencoder
        _check_autoencoder(autoencoder, config, vae or init)
        _check_networks(parts, config, init)
        return Parts(autoencoder, parts.unet, parts.text_encoder, parts.tokenizer, config.diffusion)
    assert vae is not None  # `check` saw to it
    autoencoder = load_autoencoder(find_autoencoder(vae))
    _check_autoencoder(autoencoder, config, vae)
    return _new_parts(config, autoencoder, _tokenizer(config, source, accelerator))


def _new_parts(config: Config, autoencoder: Autoencoder, tokenizer: Tokenizer) -> Parts:
    text_encoder = BertTextEncoder(_text(config), tokenizer.vocab_size)
    side = config.data.size // autoencoder.config.downsampling_factor
    unet = UNet(config.unet.model_copy(update={"sample_size": side}))
    return Parts(autoencoder, unet, text_encoder, tokenizer, config.diffusion)


def _check_networks(parts: Parts, config: Config, where: str) -> None:
    _check_same(parts.unet.config, config.unet, "unet", where)
    _check_same(parts.text_encoder.config, _text(config), "text", where)


def _check_same(loaded: Section, asked: Section, section: str, where: str) -> None:
    """Refuse a configuration that describes another network than the one it is to start from."""
    given = {"sample_size", "vocab_size", "scaling_factor", "shift_factor", "statistics"}  # they follow from the data
    differing = [
        f"{section}.{name} is {value}, not {getattr(asked, name)}"
        for name, value in loaded
        if name not in given and value != getattr(asked, name)
    ]
    if differing:
        raise UserError(f"the model {where} is not what the configuration describes: {'; '.join(differing)}")


def _check_weights(given: Autoencoder, own: Autoencoder, where: str, run: Run) -> None:
    ours, theirs = own.state_dict(), given.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{run.path} was trained on another autoencoder than --vae {where}; it keeps its own")


def _check_autoencoder(autoencoder: Autoencoder, config: Config, where: str | Path) -> None:
    if autoencoder.config.scaling_factor is None:
        raise UserError(f"the autoencoder of {where} has no latent statistics: its training has not ended")
    _check_same(autoencoder.config, config.autoencoder, "autoencoder", str(where))


def _tokenizer(config: Config, source: Source, accelerator: Accelerator) -> Tokenizer:
    """A vocabulary made from the captions by the main process and given to the others."""
    from accelerate.utils import broadcast_object_list

    text = _text(config)
    made: list[str | None] = [None]
    if accelerator.is_main_process:
        made[0] = Tokenizer.train(_captions(source), text.vocab_size, text.max_length).to_json()
    broadcast_object_list(made)
    assert made[0] is not None
    return Tokenizer.from_json(made[0], text.max_length)


def _text(config: Config) -> BertConfig:
    """The text encoder that train-unet makes; UserError for a configuration of another kind of model."""
    if not isinstance(config.text, BertConfig) or config.text_2 or config.spatial:
        raise UserError("train-unet trains models of text alone, with a text encoder of kind bert")
    return config.text


def _captions(source: Source) -> Iterable[str]:
    for index in range(len(source)):
        yield from source.captions(index)
