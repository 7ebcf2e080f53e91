"""Configuration -> objects; the only place that maps a `kind` to a class."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from ldm.checkpoint.classifiers import find_classifier
from ldm.checkpoint.diffusers.pipeline import find_autoencoder, find_model
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_to_fields
from ldm.config.data import DataConfig
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.fields import unet_to_fields
from ldm.processes import ProcessShare
from ldm.training.cache.caching import cache_in
from ldm.training.cache.fingerprints import Encoders, check_cache
from ldm.training.classes import TableCondition, TokenCondition
from ldm.training.compatibility import check_same
from ldm.training.conditions import Condition, Nothing, check_options
from ldm.training.image_embedding import ImageCondition
from ldm.training.logging.trackers import check_trackers
from ldm.training.losses import check_perceptual
from ldm.training.optim.groups import check_optimizer
from ldm.training.runs.run import Run
from ldm.training.spatial import InpaintingCondition, LowResolutionCondition, MapCondition
from ldm.training.stages.autoencoder import AutoencoderStage
from ldm.training.stages.classifier import ClassifierStage
from ldm.training.stages.initialize import initial_classifier, initial_parts
from ldm.training.stages.unet import UNetStage
from ldm.training.texts import TextCondition

CONDITIONS: dict[str, type[Condition]] = {
    "text": TextCondition,
    "classes": TokenCondition,
    "class_table": TableCondition,
    "image": ImageCondition,
    "segmentation_map": MapCondition,
    "inpainting": InpaintingCondition,
    "low_resolution": LowResolutionCondition,
    "nothing": Nothing,
}


def check(stage: str, config: Config, run: Run, vae: str | None = None, init: str | None = None) -> None:
    """Raise UserError for what a stage will miss, before any time is spent on the data."""
    check_optimizer(getattr(config.training, stage))
    check_trackers(config.training.trackers)
    if stage == "autoencoder":
        if config.autoencoder.is_pixel_space:
            raise UserError("autoencoder.kind identity has nothing to train: ldm train-unet takes images as they are")
        if config.loss.perceptual.weight:
            check_perceptual(config.loss.perceptual.net)
        if init is not None:
            find_autoencoder(init)
        return
    if getattr(config.training, stage).cache_latents:
        check_cacheable(config.data)
    if stage == "classifier":
        _check_classifier(config, run, vae, init)
        return
    kinds = _kinds(config)
    check_options(config, kinds)
    for kind in kinds:
        kind.check(config, new=init is None and not run.steps())
    scheduler_to_fields(config.diffusion)  # these two refuse what could be trained but not saved
    unet_to_fields(config.need_unet())
    if init is not None:
        find_model(init)
    _check_autoencoder(stage, config, run, vae, init)


def _check_classifier(config: Config, run: Run, vae: str | None, init: str | None) -> None:
    config.need_classifier()
    scheduler_to_fields(config.diffusion)
    if init is not None:
        find_classifier(init)
    _check_autoencoder("classifier", config, run, vae, init)


def _check_autoencoder(stage: str, config: Config, run: Run, vae: str | None, init: str | None) -> None:
    """Raise UserError where it is not known whose latents a stage is to train on."""
    if config.autoencoder.is_pixel_space:
        check_pixels(stage, config, vae)
    elif vae is not None:
        find_autoencoder(vae)
    elif init is None and not run.steps():
        raise UserError(
            f"train-{stage} needs an autoencoder: --vae (a train-vae run, a pipeline or an autoencoder's folder)"
        )


def check_cacheable(data: DataConfig) -> None:
    """Raise UserError for draws that change images, which latents that are made once cannot follow."""
    chances = {"random_crop": data.random_crop, "random_flip": data.random_flip, "random_zoom": data.random_zoom > 1}
    refused = [f"data.{name}" for name, asked in (chances | {"buckets": data.buckets is not None}).items() if asked]
    if refused:
        raise UserError(
            "a cache (--data, cache_latents of the stage) has the latents of each image's middle square, "
            f"not together with {', '.join(refused)}"
        )


def check_pixels(stage: str, config: Config, vae: str | None) -> None:
    """Raise UserError for what means nothing where images are their own latents."""
    if vae is not None:
        raise UserError(f"autoencoder.kind identity: images are their own latents, --vae {vae} has no use")
    if getattr(config.training, stage).cache_latents:
        raise UserError(
            f"autoencoder.kind identity: images are their own latents, set training.{stage}.cache_latents=false"
        )


def autoencoder_stage(
    config: Config, source: Source, accelerator: Accelerator, init: str | None = None
) -> AutoencoderStage:
    """A new autoencoder, or that of `init`, and all that trains it."""
    sized = config.autoencoder.model_copy(update={"sample_size": config.data.size})
    if init is None:
        return AutoencoderStage(Autoencoder(sized), config, accelerator, source)
    autoencoder = Autoencoder.from_pretrained(find_autoencoder(init))
    check_same(autoencoder.config, sized, "autoencoder", init)
    autoencoder.config = sized  # its latent statistics are measured anew
    return AutoencoderStage(autoencoder, config, accelerator, source, trained=True)


def unet_stage(
    config: Config, source: Source, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> UNetStage:
    """A new U-Net and text encoder, or those of `init`, on the latents of the autoencoder `vae`, ready to train."""
    parts = initial_parts(config, _kinds(config), source, accelerator, run, vae, init)
    text = parts.texts[0] if config.text is not None and config.text.frozen else None
    encoders = Encoders(parts.autoencoder, text)
    cache = _cache("unet", config, encoders, source, accelerator, run) if config.training.unet.cache_latents else None
    conditions = [kind(parts, config, accelerator, cache) for kind in _kinds(config)]
    for condition in conditions:
        condition.data = source
    return UNetStage(parts, config, accelerator, conditions, cache)


def classifier_stage(
    config: Config, source: Source, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> ClassifierStage:
    """A new classifier, or that of `init` or of the run, on the latents of an autoencoder, ready to train."""
    trained = initial_classifier(config, source, run, vae, init)
    cached, encoders = config.training.classifier.cache_latents, Encoders(trained.autoencoder)
    cache = _cache("classifier", config, encoders, source, accelerator, run) if cached else None
    return ClassifierStage(trained, config, accelerator, cache)


def _kinds(config: Config) -> list[type[Condition]]:
    """The kinds of what train-unet tells a U-Net; UserError for one that it cannot tell."""
    unet = config.need_unet()
    for name in config.told:
        if name not in CONDITIONS:
            raise UserError(f"train-unet cannot train with {name}: it knows {', '.join(CONDITIONS)}")
    for name in ("class_embed_type", "addition_embed_type"):
        if getattr(unet, name) is not None:
            raise UserError(f"train-unet has nothing for unet.{name}: set it to null")
    return [CONDITIONS[name] for name in config.told]


def _cache(
    stage: str, config: Config, encoders: Encoders, source: Source, accelerator: Accelerator, run: Run
) -> CachedData:
    """The cache that is the data, or one of latents alone in the run, made now or found; UserError if it is stale."""
    if not source.random_access:
        raise UserError(
            "streamed shards are cached beforehand: `ldm cache`, then --data with its folder; or "
            f"--set training.{stage}.cache_latents=false"
        )
    autoencoder = encoders.autoencoder.to(accelerator.device, memory_format=torch.channels_last).eval()
    share = ProcessShare(accelerator.process_index, accelerator.num_processes)
    cache = source.latents
    if cache is None:
        cache = cache_in(run.path, source, config.data, Encoders(autoencoder), share, accelerator.device)
    check_cache(cache, config.data, encoders, share)
    return cache
