"""Which encoders `ldm cache` sends images and captions through, and by which configuration."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.checkpoint.find import built_in, find_autoencoder
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.encoder import TextEncoder
from ldm.conditioning.text.sources import load_source
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.root import Config
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.training.cache.fingerprints import Encoders


def configuration_of(model: str) -> str:
    """Return the configuration of a run or a built-in model.

    Raises:
        UserError: if the model has none.
    """
    path = find_autoencoder(model).parent / "config.yaml"
    if path.is_file():
        return str(path)
    if not Path(model).is_dir() and built_in(model) is not None:
        return model
    raise UserError(f"{model} has no configuration: pass --config, which sets the size of images and the text encoder")


def load_encoders(model: str, config: Config, own: bool) -> Encoders:
    """Load the autoencoder of `model` and, if it is frozen, a text encoder; also return whether classes are kept.

    That is the one of `text.source` or the model's; the model's where the configuration is its `own`.
    """
    folder = find_autoencoder(model)
    if config.text_2 is not None:
        raise UserError("text_2 is set, but ldm cache and train-unet support only one text encoder: set text_2=null")
    text = _frozen_text(folder.parent, model, config, own)
    return Encoders(Autoencoder.from_pretrained(folder).eval(), text, classes=config.uses_labels)


def _frozen_text(pipeline: Path, model: str, config: Config, own: bool) -> tuple[TextEncoder, Tokenizer] | None:
    text = config.text
    if text is None or not text.frozen:
        return None
    whole = (pipeline / "model_index.json").is_file()
    if text.source is not None and not (own and whole):
        return load_source(text)
    if not whole:
        raise UserError(f"text.frozen is true, but {model} has no text encoder: set text.source, or name a pipeline")
    found = TextConditioning.of(load_pipeline(pipeline))
    if found is None or len(found.encoders) != 1:
        count = 0 if found is None else len(found.encoders)
        raise UserError(f"{model} has {count} text encoders: a cache holds the context of one")
    return found.encoders[0]
