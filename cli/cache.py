"""`ldm cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cache(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The training data, as for --data of train-unet.")],
    model: Annotated[str, typer.Option(help="A train-vae run, a pipeline, or the folder of an autoencoder.")],
    out: Annotated[Path, typer.Option(help="A folder for the cache; pass it as --data to train-unet.")],
    config: Annotated[
        str | None, typer.Option(help="The configuration to train with.  [default: the model's own]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted cache in --out.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, and captions, in a batch of one process.")] = 64,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a file; each .tar shard becomes one file.")] = 1024,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one option of the configuration.")
    ] = None,
) -> None:
    """Encode images, and captions where the text encoder is frozen, once for many runs of train-unet."""
    from ldm.training.cache.caching import CacheWriter, check_folder

    check_folder(out, resume)
    import ldm.config
    from ldm.data.sources import open_source
    from ldm.generation import find_device
    from ldm.processes import ProcessShare
    from ldm.training.cache.encoders import configuration_of, load_encoders
    from ldm.training.cache.fingerprints import facts_of
    from ldm.training.runs.run import complete_config
    from ldm.training.stages.latent_stage import check_cacheable

    loaded = complete_config(ldm.config.load(config or configuration_of(model), settings or ()), out)
    check_cacheable(loaded.data)
    share = ProcessShare.of_environment()
    place = find_device(device or share.device())
    encoders = load_encoders(model, loaded, own=config is None).to(place)
    source = share.first_alone(lambda: open_source(data, loaded.data))
    facts = facts_of(source, loaded.data, encoders, share, shard_size)
    made = CacheWriter(out, source, facts, encoders, share, place, batch_size).write()
    share.leave()
    if share.is_first:
        typer.echo(made.summary())
