"""Configuration -> objects; the only place that maps a `kind` to a class."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from ldm.checkpoint.diffusers import Parts, find_autoencoder, load_autoencoder, load_pipeline, resolve
from ldm.checkpoint.pretrained import Autoencoder, UNet
from ldm.checkpoint.scheduler_fields import scheduler_to_fields
from ldm.checkpoint.text_sources import load_source
from ldm.checkpoint.texts import saved_config
from ldm.checkpoint.unet_fields import unet_to_fields
from ldm.config import BertConfig, Config, DataConfig, LDMBertConfig, Section, TextSection
from ldm.data.cached import CachedData
from ldm.data.preview import all_captions
from ldm.data.shards import Shards
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.text import TextEncoder, Tokenizer, make_text_encoder
from ldm.processes import ProcessShare
from ldm.training.autoencoder import AutoencoderStage
from ldm.training.caching import cache_in
from ldm.training.fingerprints import Encoders, check_cache
from ldm.training.losses import check_perceptual
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
            check_perceptual(config.loss.perceptual.net)
        if init is not None:
            find_autoencoder(init)
        return
    text = _text(config)
    if config.training.unet.cache_latents:
        check_cacheable(config.data)
    if init is None and not run.steps():
        _check_source(text)
    if text.frozen and config.training.unet.text_learning_rate is not None:
        raise UserError("training.unet.text_learning_rate is for a text encoder that is trained; text.frozen is true")
    scheduler_to_fields(config.diffusion)  # these two refuse what could be trained but not saved
    unet_to_fields(config.need_unet())
    if init is not None:
        resolve(init)
    if vae is not None:
        find_autoencoder(vae)
    elif init is None and not run.steps():
        raise UserError(
            "train-unet needs an autoencoder: --vae (a train-vae run, a pipeline or an autoencoder's folder)"
        )


def check_cacheable(data: DataConfig) -> None:
    """Raise UserError for draws that change pictures, which latents that are made once cannot follow."""
    chances = {"random_crop": data.random_crop, "random_flip": data.random_flip, "random_zoom": data.random_zoom > 1}
    refused = [f"data.{name}" for name, asked in (chances | {"buckets": data.buckets is not None}).items() if asked]
    if refused:
        raise UserError(
            "a cache (--data, training.unet.cache_latents) has the latents of each picture's middle square, "
            f"not together with {', '.join(refused)}"
        )


def autoencoder_stage(
    config: Config, source: Source | Shards, accelerator: Accelerator, init: str | None = None
) -> AutoencoderStage:
    """A new autoencoder, or that of `init`, and all that trains it."""
    sized = config.autoencoder.model_copy(update={"sample_size": config.data.size})
    if init is None:
        return AutoencoderStage(Autoencoder(sized), config, accelerator, source)
    autoencoder = load_autoencoder(find_autoencoder(init))
    _check_same(autoencoder.config, sized, "autoencoder", init)
    autoencoder.config = sized  # its latent statistics are measured anew
    return AutoencoderStage(autoencoder, config, accelerator, source, trained=True)


def unet_stage(
    config: Config, source: Source | Shards, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> UNetStage:
    """A new U-Net and text encoder, or those of `init`, on the latents of the autoencoder `vae`, ready to train."""
    parts = _initial_parts(config, source, accelerator, run, vae, init)
    cache = _cache(config, parts, source, accelerator, run) if config.training.unet.cache_latents else None
    return UNetStage(parts, config, accelerator, cache)


def _cache(config: Config, parts: Parts, source: Source | Shards, accelerator: Accelerator, run: Run) -> CachedData:
    """The cache that is the data, or one of latents alone in the run, made now or found; UserError if it is stale."""
    if isinstance(source, Shards):
        raise UserError(
            "streamed shards are cached beforehand: `ldm cache`, then --data with its folder; or "
            "--set training.unet.cache_latents=false"
        )
    autoencoder = parts.autoencoder.to(accelerator.device, memory_format=torch.channels_last).eval()
    share = ProcessShare(accelerator.process_index, accelerator.num_processes)
    if not isinstance(source, CachedData):
        source = cache_in(run.path, source, config.data, Encoders(autoencoder), share, accelerator.device)
    text = parts.texts[0] if _text(config).frozen else None
    check_cache(source, config.data, Encoders(autoencoder, text), share)
    return source


def _initial_parts(
    config: Config, source: Source | Shards, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> Parts:
    steps = run.steps()
    if steps:  # a resumed run: its own autoencoder and tokenizer; the weights follow from its state
        saved = load_pipeline(steps[-1])
        if vae is not None:
            _check_weights(load_autoencoder(find_autoencoder(vae)), saved.autoencoder, vae, run)
        _check_networks(saved, config, str(steps[-1]))
        assert saved.tokenizer is not None  # `_check_networks` saw to it
        text = saved.text_encoder if _text(config).frozen else None
        return _new_parts(config, saved.autoencoder, saved.tokenizer, text)
    if init is not None:
        parts = load_pipeline(resolve(init))
        autoencoder = load_autoencoder(find_autoencoder(vae)) if vae else parts.autoencoder
        _check_autoencoder(autoencoder, config, vae or init)
        _check_networks(parts, config, init)
        return Parts(autoencoder, parts.unet, parts.text_encoder, parts.tokenizer, config.diffusion)
    assert vae is not None  # `check` saw to it
    autoencoder = load_autoencoder(find_autoencoder(vae))
    _check_autoencoder(autoencoder, config, vae)
    if _text(config).source is not None:
        text_encoder, tokenizer = load_source(_text(config))
        return _new_parts(config, autoencoder, tokenizer, text_encoder)
    return _new_parts(config, autoencoder, _tokenizer(config, source, accelerator))


def _new_parts(
    config: Config, autoencoder: Autoencoder, tokenizer: Tokenizer, text_encoder: TextEncoder | None = None
) -> Parts:
    text = _text(config)
    if text_encoder is None:
        found = {} if text.source else {"vocab_size": tokenizer.vocab_size}  # as many as there are in the captions
        text_encoder = make_text_encoder(text.model_copy(update=found))
    side = config.data.size // autoencoder.config.downsampling_factor
    unet = UNet(config.need_unet().model_copy(update={"sample_size": side}))
    return Parts(autoencoder, unet, text_encoder, tokenizer, config.diffusion)


def _check_networks(parts: Parts, config: Config, where: str) -> None:
    _check_same(parts.unet.config, config.need_unet(), "unet", where)
    if parts.text_encoder is None or parts.text_encoder_2 is not None or parts.tokenizer is None:
        raise UserError(f"the model {where} is not what the configuration describes: it has not one text encoder")
    _check_same(parts.text_encoder.config, saved_config(_text(config)), "text", where)


def _check_same(loaded: Section, asked: Section, section: str, where: str) -> None:
    """Refuse a configuration that describes another network than the one it is to start from."""
    # They follow from the data, or tell how to load or to train the weights.
    given = {"sample_size", "vocab_size", "scaling_factor", "shift_factor", "statistics", "force_upcast"}
    given |= {"source", "frozen"}
    wanted = dict(asked)
    differing = [
        f"{section}.{name} is {value}, not {wanted.get(name)}"
        for name, value in loaded
        if name not in given and value != wanted.get(name)
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


def _tokenizer(config: Config, source: Source | Shards, accelerator: Accelerator) -> Tokenizer:
    """A vocabulary made from the captions by the main process and given to the others."""
    from accelerate.utils import broadcast_object_list

    text = _text(config)
    made: list[str | None] = [None]
    if accelerator.is_main_process:
        made[0] = Tokenizer.train(all_captions(source), text.vocab_size, text.max_length).to_json()
    broadcast_object_list(made)
    assert made[0] is not None
    return Tokenizer.from_json(made[0], text.max_length)


def _text(config: Config) -> TextSection:
    """The section of the text encoder that train-unet gives a U-Net; UserError for another kind of model."""
    unet, text = config.need_unet(), config.text
    if text is None or config.text_2 or config.spatial:
        raise UserError("train-unet trains models of text alone, with one text encoder")
    for name in ("num_class_embeds", "class_embed_type", "addition_embed_type"):
        if getattr(unet, name) is not None:
            raise UserError(f"train-unet trains models of text alone: set unet.{name} to null")
    if isinstance(text, LDMBertConfig) and text.tokens == "boxes":
        raise UserError("text.tokens boxes: train-unet has captions, which are words")
    return text


def _check_source(text: TextSection) -> None:
    """Refuse an encoder that neither comes from somewhere nor can be made from captions."""
    if text.source is None and not isinstance(text, BertConfig | LDMBertConfig):
        raise UserError(f"text.kind {text.kind} needs text.source: a vocabulary for it is not made from captions")
    if text.source is None and text.frozen:
        raise UserError("text.frozen without text.source would keep random weights: set one of the two")
