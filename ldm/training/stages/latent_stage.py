"""What stages on the latents of a trained autoencoder share: checks, and latents that are encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_to_fields
from ldm.checkpoint.find import find_autoencoder
from ldm.config.data import DataConfig
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.processes import ProcessShare
from ldm.training.cache.caching import cache_in
from ldm.training.cache.fingerprints import Encoders, check_cache
from ldm.training.runs.run import Run
from ldm.training.stages.stage import Stage, StartingPoint


class LatentStage(Stage):
    """A stage on the latents of a trained autoencoder, or on pixels with `autoencoder.kind: identity`."""

    on_latents = True

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Check configuration and files before time is spent on the data."""
        super().check(config, run, start)
        if config.training.of(cls.name).cache_latents:
            check_cacheable(config.data)
        scheduler_to_fields(config.diffusion)  # raises for a schedule that cannot be saved
        cls._check_autoencoder(config, run, start)

    @classmethod
    def _check_autoencoder(cls, config: Config, run: Run, start: StartingPoint) -> None:
        if config.autoencoder.is_pixel_space:
            if start.vae is not None:
                raise UserError(f"--vae {start.vae} is not used with autoencoder.kind identity: leave it out")
            if config.training.of(cls.name).cache_latents:
                raise UserError(
                    "latents are not cached with autoencoder.kind identity: "
                    f"set training.{cls.name}.cache_latents=false"
                )
        elif start.vae is not None:
            find_autoencoder(start.vae)
        elif start.init is None and not run.steps():
            raise UserError(
                f"train-{cls.name} needs an autoencoder: --vae (a train-vae run, a pipeline or an autoencoder's folder)"
            )

    @classmethod
    def open_cache(
        cls, config: Config, encoders: Encoders, source: Source, accelerator: Accelerator, run: Run
    ) -> CachedData | None:
        """Return the cache that is the data, or one of latents in the run, written now or found; None: not configured.

        Raises:
            UserError: if the cache was made from other data or encoders.
        """
        if not config.training.of(cls.name).cache_latents:
            return None
        if not source.random_access:
            raise UserError(
                "cache_latents does not support streamed shards: run `ldm cache` first and pass its folder as --data, "
                f"or --set training.{cls.name}.cache_latents=false"
            )
        autoencoder = encoders.autoencoder.to(accelerator.device, memory_format=torch.channels_last).eval()
        share = ProcessShare(accelerator.process_index, accelerator.num_processes)
        cache = source.latents
        if cache is None:
            cache = cache_in(run.path, source, config.data, Encoders(autoencoder), share, accelerator.device)
        check_cache(cache, config.data, encoders, share)
        return cache


def cache_options(cache: CachedData | None, other_images: bool = False) -> Mapping[str, Any]:
    """Return the arguments of `Stage.__init__` that follow from a cache; `other_images`: images are needed anyway."""
    unreadable = None if cache is None else cache.unreadable
    return {"needs_images": cache is None or other_images, "unreadable": unreadable}


def check_cacheable(data: DataConfig) -> None:
    """Raise UserError for random changes of images, which latents that are encoded once cannot follow."""
    changes = {"random_crop": data.random_crop, "random_flip": data.random_flip, "random_zoom": data.random_zoom > 1}
    names = [f"data.{name}" for name, active in (changes | {"buckets": data.buckets is not None}).items() if active]
    if names:
        raise UserError(
            f"cached latents are those of each image's center square and do not support {', '.join(names)}: "
            "switch these off, or cache_latents of the stage"
        )
