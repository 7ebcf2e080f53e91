"""Load and save classifiers of noisy latents, with their autoencoder and schedule in the layout of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.checkpoint.diffusers.pipeline import load_scheduler, save_scheduler
from ldm.checkpoint.find import find_model
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.classes import NAMES, class_facts, read_facts
from ldm.config.classifier import ClassifierConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.config.section import parse
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.identity import identity_config
from ldm.models.classifier import Classifier
from ldm.storage.component import STEM
from ldm.storage.fields import DIFFUSERS_VERSION, expect_class, known_fields, load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import build, load_weights, save_weights


@dataclass
class TrainedClassifier:
    """A classifier, and the autoencoder and noise schedule that define its input."""

    network: Classifier
    autoencoder: Autoencoder
    diffusion: DiffusionConfig
    class_names: tuple[str, ...] = ()  # by number; (): unnamed

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TrainedClassifier:
        """Load a run of `ldm train-classifier` or the folder of one of its steps."""
        folder = find_classifier(path)
        network, names = load_classifier(folder / "classifier")
        pixels = not (folder / "vae").is_dir()
        identity = identity_config(network.config.in_channels, network.config.sample_size)
        autoencoder = Autoencoder(identity) if pixels else Autoencoder.from_pretrained(folder / "vae")
        return cls(network, autoencoder, load_scheduler(folder / "scheduler"), names)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the folders classifier/, scheduler/ and, unless it works on pixels, vae/."""
        folder = Path(path)
        save_classifier(self.network, self.class_names, folder / "classifier")
        if not self.autoencoder.config.is_pixel_space:
            self.autoencoder.save_pretrained(folder / "vae")
        save_scheduler(self.diffusion, folder / "scheduler")

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError unless it was trained on the latents and the noise of a pipeline."""
        if not _same_latents(self.autoencoder, pipeline.autoencoder):
            raise UserError("the classifier was trained on the latents of another autoencoder than this model's")
        if not _same_noise(self.diffusion, pipeline.diffusion):
            raise UserError("the classifier was trained with another noise schedule than this model")
        names = pipeline.class_names
        if self.class_names and names and self.class_names != names:
            raise UserError("the classifier has other classes than this model")


def find_classifier(model: str | Path) -> Path:
    """Find the folder of a run's newest classifier.

    Raises:
        UserError: if there is none.
    """
    folder = find_model(model)
    if not (folder / "classifier").is_dir():
        raise UserError(f"{folder} holds no classifier: train one with ldm train-classifier")
    return folder


def load_classifier(folder: Path) -> tuple[Classifier, tuple[str, ...]]:
    """Load the network in a folder, and the names of its classes."""
    path = folder / "config.json"
    fields = load_fields(path)
    expect_class(fields, ("Classifier",), path)
    names, _ = read_facts(fields)
    own = {name: value for name, value in fields.items() if name != NAMES}
    known = known_fields(own, ClassifierConfig().model_dump(mode="json"), {}, path)
    config = parse(known, ClassifierConfig, str(path))
    if names and len(names) != config.num_classes:
        raise UserError(f"{path} names {len(names)} classes and has {config.num_classes}: it is damaged")
    return build(lambda: Classifier(config), load_weights(folder, STEM), torch.float32, folder), names


def save_classifier(network: Classifier, class_names: Sequence[str], folder: Path) -> None:
    """Write the network and the names of its classes."""
    save_weights(folder, STEM, network.state_dict(), None)
    kind = {"_class_name": "Classifier", "_diffusers_version": DIFFUSERS_VERSION}
    save_json(folder / "config.json", kind | class_facts(class_names, None) | network.config.model_dump(mode="json"))


def _same_latents(ours: Autoencoder, theirs: Autoencoder) -> bool:
    """Return whether two autoencoders have the same encoder; the weights of one may have been rounded."""
    if ours.config.kind != theirs.config.kind or _scaling(ours) != _scaling(theirs):
        return False
    wanted, given = ours.state_dict(), theirs.state_dict()
    encoding = [name for name in wanted if name.startswith(("encoder.", "quant_conv."))]
    return all(name in given and torch.equal(wanted[name].to(given[name]), given[name]) for name in encoding)


def _scaling(autoencoder: Autoencoder) -> tuple[object, object]:
    return autoencoder.config.scaling_factor, autoencoder.config.shift_factor


def _same_noise(ours: DiffusionConfig, theirs: DiffusionConfig) -> bool:
    """Return whether each timestep has the same signal in both schedules; their sampling grids may differ."""
    if ours.schedule.num_train_timesteps != theirs.schedule.num_train_timesteps:
        return False
    t = torch.arange(ours.schedule.num_train_timesteps)
    first, second = (make_schedule(each.schedule).level(t, torch.float64).alpha for each in (ours, theirs))
    return torch.equal(first, second)
