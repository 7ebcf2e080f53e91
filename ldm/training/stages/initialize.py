"""Starting points of training a denoiser or a classifier: new networks, a model's, or a resumed run's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.checkpoint.find import find_autoencoder, find_model
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import Conditioning
from ldm.config.compatibility import check_same
from ldm.config.root import Config
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.classifier import Classifier
from ldm.models.denoiser import DenoiserNetwork
from ldm.training.runs.run import Run


def initial_pipeline(
    config: Config, source: Source, accelerator: Accelerator, run: Run, vae: str | None, init: str | None
) -> Pipeline:
    """Return the pipeline to be trained, new, of the model `init`, or of a run that continues.

    Raises:
        UserError: if a loaded model is not what the configuration describes.
    """
    if run.steps():
        return _of_run(config, source, run, vae)
    for kind in config.conditionings:
        kind.check_source(source)
    given = None if init is None else load_pipeline(find_model(init))
    autoencoder = _autoencoder(config, vae, given, init or "")
    found = []
    for kind in config.conditionings:
        adopted = None if given is None else kind.adopt(config, source, given, init or "")
        if adopted is None:
            kind.check_training(config, new=True)
            adopted = kind.create(config, source, accelerator)
        found.append(adopted)
    pipeline = _pipeline(config, autoencoder, found)
    if given is not None:
        start_from(pipeline.denoiser, given.denoiser, init or "", accelerator)
    return pipeline


def _of_run(config: Config, source: Source, run: Run, vae: str | None) -> Pipeline:
    """Load the run's autoencoder, tokenizers and frozen networks; the trained weights follow from its state."""
    newest = run.steps()[-1]
    saved = load_pipeline(newest)
    if vae is not None:
        _check_weights(Autoencoder.from_pretrained(find_autoencoder(vae)), saved.autoencoder, vae, run)
    check_same(saved.denoiser.config, config.denoiser, str(config.denoiser_name), str(newest))
    found = [kind.resume(config, source, saved, str(newest)) for kind in config.conditionings]
    return _pipeline(config, saved.autoencoder, found)


def _pipeline(config: Config, autoencoder: Autoencoder, conditionings: Sequence[Conditioning]) -> Pipeline:
    """Combine an autoencoder and conditionings with a new denoiser."""
    side = config.data.size // autoencoder.config.downsampling_factor
    denoiser = config.denoiser_class(config.denoiser.model_copy(update={"sample_size": side}))
    return Pipeline(autoencoder, denoiser, config.diffusion, {each.name: each for each in conditionings})


def initial_classifier(
    config: Config, source: Source, run: Run, vae: str | None, init: str | None
) -> TrainedClassifier:
    """Return the classifier to be trained, new, of the model `init`, or of a run that continues.

    Raises:
        UserError: if a loaded model is not what the configuration describes.
    """
    names, asked = tuple(source.class_names), config.need_classifier()
    if names and len(names) != asked.num_classes:
        raise UserError(
            f"classifier.num_classes is {asked.num_classes}, but the data has {len(names)} classes: they must be equal"
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


# Options in which a U-Net may differ from the one it starts from: its conditions, and what it predicts.
CONDITIONS = {"in_channels", "out_channels", "attention", "cross_attention_dim", "num_class_embeds", "class_embed_type"}
CONDITIONS |= {"addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}


def start_from(network: DenoiserNetwork, given: DenoiserNetwork, where: str, accelerator: Accelerator) -> None:
    """Copy the weights of a trained U-Net whose names and shapes agree; print what stays new.

    New input and output channels start at zero, so that the result equals the trained U-Net at first.

    Raises:
        UserError: if more than the conditions differs, since little of use would be left.
    """
    check_same(given.config, network.config, "unet", where, CONDITIONS)
    ours, theirs = network.state_dict(), given.state_dict()
    taken = {name: weight for name, weight in theirs.items() if name in ours and weight.shape == ours[name].shape}
    for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias"):
        if name in ours and name in theirs:
            taken.setdefault(name, _padded(theirs[name], ours[name]))
    network.load_state_dict(ours | taken)
    new = [name for name in ours if name not in taken]
    if new and accelerator.is_main_process:
        kept = f"{len(taken)} of the {len(ours)} tensors of the U-Net are those of {where}"
        print(f"{kept}; {len(new)} start new, such as {', '.join(new[:2])}", file=sys.stderr)


def _padded(weight: Tensor, like: Tensor) -> Tensor:
    """Crop a weight to the shape of `like`, or pad it with zeros."""
    both = tuple(slice(min(sizes)) for sizes in zip(weight.shape, like.shape, strict=True))
    made = torch.zeros_like(like)
    made[both] = weight[both]
    return made


def _autoencoder(config: Config, vae: str | None, given: Pipeline | TrainedClassifier | None, init: str) -> Autoencoder:
    """Load the autoencoder of `vae`, else of the model `init`; in pixel space create an identity."""
    if config.autoencoder.is_pixel_space:
        return Autoencoder(config.autoencoder.model_copy(update={"sample_size": config.data.size}))
    if vae is not None:
        autoencoder = Autoencoder.from_pretrained(find_autoencoder(vae))
    else:
        assert given is not None  # `build.check` requires one of both
        autoencoder = given.autoencoder
    _check_autoencoder(autoencoder, config, vae or init)
    return autoencoder


def _check_weights(given: Autoencoder, own: Autoencoder, where: str, run: Run) -> None:
    ours, theirs = own.state_dict(), given.state_dict()
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{run.path} was trained on another autoencoder than --vae {where}: leave --vae out")


def _check_autoencoder(autoencoder: Autoencoder, config: Config, where: str | Path) -> None:
    if autoencoder.config.scaling_factor is None:
        raise UserError(f"the autoencoder of {where} has no latent statistics: its training is not finished")
    check_same(autoencoder.config, config.autoencoder, "autoencoder", str(where))
