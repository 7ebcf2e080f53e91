"""The parts that training a U-Net or a classifier starts from: new ones, those of a model, or those of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.checkpoint.diffusers.pipeline import Parts, find_autoencoder, find_model, load_pipeline
from ldm.config.root import Config
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.classifier import Classifier
from ldm.models.unet.unet import UNet
from ldm.training.compatibility import check_same
from ldm.training.conditions import Condition, Fields
from ldm.training.runs.run import Run


def initial_parts(
    config: Config,
    kinds: Sequence[type[Condition]],
    source: Source,
    accelerator: Accelerator,
    run: Run,
    vae: str | None,
    init: str | None,
) -> Parts:
    """All parts of the pipeline that is to be trained; UserError where they are not what the configuration asks."""
    if run.steps():
        return _of_run(config, kinds, source, run, vae)
    if init is not None:
        return _of_model(config, kinds, source, accelerator, vae, init)
    autoencoder = _autoencoder(config, vae)
    return _parts(config, autoencoder, [kind.new_parts(config, source, accelerator) for kind in kinds])


def _of_run(config: Config, kinds: Sequence[type[Condition]], source: Source, run: Run, vae: str | None) -> Parts:
    """The run's own autoencoder and tokenizer; the trained weights follow from its state."""
    newest = run.steps()[-1]
    saved = load_pipeline(newest)
    if vae is not None:
        _check_weights(Autoencoder.from_pretrained(find_autoencoder(vae)), saved.autoencoder, vae, run)
    check_same(saved.unet.config, config.need_unet(), "unet", str(newest))
    return _parts(config, saved.autoencoder, [kind.own_parts(config, source, saved, str(newest)) for kind in kinds])


def _of_model(
    config: Config,
    kinds: Sequence[type[Condition]],
    source: Source,
    accelerator: Accelerator,
    vae: str | None,
    init: str,
) -> Parts:
    given = load_pipeline(find_model(init))
    autoencoder = _autoencoder(config, vae, given, init)
    found = []
    for kind in kinds:
        fields = kind.given_parts(config, source, given, init)
        if fields is None:
            kind.check(config, new=True)
            fields = kind.new_parts(config, source, accelerator)
        found.append(fields)
    parts = _parts(config, autoencoder, found)
    return replace(parts, unet=started(parts.unet, given.unet, init, accelerator))


def _parts(config: Config, autoencoder: Autoencoder, told: Sequence[Fields]) -> Parts:
    """The pipeline of an autoencoder, what the conditions bring along, and a new U-Net."""
    side = config.data.size // autoencoder.config.downsampling_factor
    unet = UNet(config.need_unet().model_copy(update={"sample_size": side}))
    fields = {"text_encoder": None, "tokenizer": None} | {name: part for each in told for name, part in each.items()}
    return Parts(autoencoder=autoencoder, unet=unet, diffusion=config.diffusion, **fields)


def initial_classifier(
    config: Config, source: Source, run: Run, vae: str | None, init: str | None
) -> TrainedClassifier:
    """A new classifier, or that of a run that goes on or of `init`; UserError where that is another than is asked."""
    names, asked = tuple(source.class_names), config.need_classifier()
    if names and len(names) != asked.num_classes:
        raise UserError(
            f"the data has {len(names)} classes: classifier.num_classes must be that, not {asked.num_classes}"
        )
    steps = run.steps()
    where = str(steps[-1]) if steps else init
    given = None if where is None else TrainedClassifier.from_pretrained(where)
    if given is not None and where is not None:
        check_same(given.network.config, asked, "classifier", where)
        if given.class_names != names:
            raise UserError(f"the classes of the data are not those of {where}")
    if steps and given is not None:
        if vae is not None:
            _check_weights(Autoencoder.from_pretrained(find_autoencoder(vae)), given.autoencoder, vae, run)
        autoencoder = given.autoencoder
    else:
        autoencoder = _autoencoder(config, vae, given, init or "")
    side = config.data.size // autoencoder.config.downsampling_factor
    network = Classifier(asked.model_copy(update={"sample_size": side})) if given is None else given.network
    return TrainedClassifier(network, autoencoder, config.diffusion, names)


# Options in which a U-Net may differ from the one it starts from: what it is told, and what its output says.
TOLD = {"in_channels", "out_channels", "attention", "cross_attention_dim", "num_class_embeds", "class_embed_type"}
TOLD |= {"addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}


def started(unet: UNet, given: UNet, where: str, accelerator: Accelerator) -> UNet:
    """The U-Net with the weights of a trained one whose names and shapes agree; the other weights stay as they are.

    Input channels that it had not, and output channels, start at zero, so that it is the trained one at first. A line
    says what is new. UserError where more than what they are told differs, since little of use would be left.
    """
    check_same(given.config, unet.config, "unet", where, TOLD)
    ours, theirs = unet.state_dict(), given.state_dict()
    taken = {name: weight for name, weight in theirs.items() if name in ours and weight.shape == ours[name].shape}
    for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias"):
        taken.setdefault(name, _widened(theirs[name], ours[name]))
    unet.load_state_dict(ours | taken)
    new = [name for name in ours if name not in taken]
    if new and accelerator.is_main_process:
        kept = f"{len(taken)} of the {len(ours)} tensors of the U-Net are those of {where}"
        print(f"{kept}; {len(new)} start new, such as {', '.join(new[:2])}", file=sys.stderr)
    return unet


def _widened(weight: Tensor, like: Tensor) -> Tensor:
    """The channels of a weight that both have, in a weight that is zero besides."""
    both = tuple(slice(min(sizes)) for sizes in zip(weight.shape, like.shape, strict=True))
    made = torch.zeros_like(like)
    made[both] = weight[both]
    return made


def _autoencoder(
    config: Config, vae: str | None, given: Parts | TrainedClassifier | None = None, init: str = ""
) -> Autoencoder:
    """That of `vae` or else of the model `init`; in pixel space there is none to load."""
    if config.autoencoder.is_pixel_space:
        return Autoencoder(config.autoencoder.model_copy(update={"sample_size": config.data.size}))
    if vae is not None:
        autoencoder = Autoencoder.from_pretrained(find_autoencoder(vae))
    else:
        assert given is not None  # `build.check` saw to it
        autoencoder = given.autoencoder
    _check_autoencoder(autoencoder, config, vae or init)
    return autoencoder


def _check_weights(given: Autoencoder, own: Autoencoder, where: str, run: Run) -> None:
    ours, theirs = own.state_dict(), given.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{run.path} was trained on another autoencoder than --vae {where}; it keeps its own")


def _check_autoencoder(autoencoder: Autoencoder, config: Config, where: str | Path) -> None:
    if autoencoder.config.scaling_factor is None:
        raise UserError(f"the autoencoder of {where} has no latent statistics: its training has not ended")
    check_same(autoencoder.config, config.autoencoder, "autoencoder", str(where))
