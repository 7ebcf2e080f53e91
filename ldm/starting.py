"""The parts that training a U-Net starts from: new ones, those of a model, or those of a run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ldm.checkpoint.diffusers import Parts, find_autoencoder, load_autoencoder, load_pipeline, resolve
from ldm.checkpoint.pretrained import Autoencoder, UNet
from ldm.config import Config
from ldm.data.shards import Shards
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.conditions import Condition, Fields
from ldm.training.run import Run
from ldm.training.same import check_same


def initial_parts(
    config: Config,
    kinds: Sequence[type[Condition]],
    source: Source | Shards,
    accelerator: Accelerator,
    run: Run,
    vae: str | None,
    init: str | None,
) -> Parts:
    """All parts of the pipeline that is to be trained; UserError where they are not what the configuration asks."""
    if run.steps():
        return _of_run(config, kinds, run, vae)
    if init is not None:
        return _of_model(config, kinds, source, accelerator, vae, init)
    assert vae is not None  # `build.check` saw to it
    autoencoder = load_autoencoder(find_autoencoder(vae))
    _check_autoencoder(autoencoder, config, vae)
    return _parts(config, autoencoder, [kind.new_parts(config, source, accelerator) for kind in kinds])


def _of_run(config: Config, kinds: Sequence[type[Condition]], run: Run, vae: str | None) -> Parts:
    """The run's own autoencoder and tokenizer; the trained weights follow from its state."""
    newest = run.steps()[-1]
    saved = load_pipeline(newest)
    if vae is not None:
        _check_weights(load_autoencoder(find_autoencoder(vae)), saved.autoencoder, vae, run)
    check_same(saved.unet.config, config.need_unet(), "unet", str(newest))
    return _parts(config, saved.autoencoder, [kind.own_parts(config, saved, str(newest)) for kind in kinds])


def _of_model(
    config: Config,
    kinds: Sequence[type[Condition]],
    source: Source | Shards,
    accelerator: Accelerator,
    vae: str | None,
    init: str,
) -> Parts:
    given = load_pipeline(resolve(init))
    autoencoder = load_autoencoder(find_autoencoder(vae)) if vae else given.autoencoder
    _check_autoencoder(autoencoder, config, vae or init)
    check_same(given.unet.config, config.need_unet(), "unet", init)
    found = []
    for kind in kinds:
        fields = kind.given_parts(config, given, init)
        if fields is None:
            kind.check(config, new=True)
            fields = kind.new_parts(config, source, accelerator)
        found.append(fields)
    return _parts(config, autoencoder, found, given.unet)


def _parts(config: Config, autoencoder: Autoencoder, told: Sequence[Fields], unet: UNet | None = None) -> Parts:
    """The pipeline of an autoencoder, what the conditions bring along, and a U-Net, by default a new one."""
    if unet is None:
        side = config.data.size // autoencoder.config.downsampling_factor
        unet = UNet(config.need_unet().model_copy(update={"sample_size": side}))
    fields = {"text_encoder": None, "tokenizer": None} | {name: part for each in told for name, part in each.items()}
    return Parts(autoencoder=autoencoder, unet=unet, diffusion=config.diffusion, **fields)


def _check_weights(given: Autoencoder, own: Autoencoder, where: str, run: Run) -> None:
    ours, theirs = own.state_dict(), given.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{run.path} was trained on another autoencoder than --vae {where}; it keeps its own")


def _check_autoencoder(autoencoder: Autoencoder, config: Config, where: str | Path) -> None:
    if autoencoder.config.scaling_factor is None:
        raise UserError(f"the autoencoder of {where} has no latent statistics: its training has not ended")
    check_same(autoencoder.config, config.autoencoder, "autoencoder", str(where))
