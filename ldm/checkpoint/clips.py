"""CLIP models of transformers and of open_clip, from a folder or by a published name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.clip import Clip

OPEN_CLIP = "open_clip:"


def load_clip(model: str | Path) -> Clip:
    """Load a CLIP from a folder as transformers or open_clip write it, a Hub id, or `open_clip:ARCHITECTURE:WEIGHTS`.

    WEIGHTS is a file or the name of published weights.

    Raises:
        UserError: if the CLIP cannot be loaded.
    """
    name = str(model)
    try:
        if name.startswith(OPEN_CLIP):
            architecture, _, weights = name.removeprefix(OPEN_CLIP).partition(":")
            if not weights:
                raise UserError(f"CLIP {name}: name its weights as well, such as open_clip:ViT-B-32:laion2b_s34b_b79k")
            return _open_clip(architecture, weights)
        if (Path(name) / "open_clip_config.json").is_file():
            return _open_clip(f"local-dir:{name}", None)
        return _transformers(name)
    except UserError:
        raise
    except Exception as error:  # both libraries and their downloads raise many types
        raise UserError(f"no CLIP model {name!r}: {' '.join(str(error).split())[:300]}") from error


def _transformers(model: str) -> Clip:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    network, tokenizer = CLIPModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    processor = CLIPImageProcessor.from_pretrained(model)
    length = network.config.text_config.max_position_embeddings

    def embed(images: Tensor) -> Tensor:
        return network.visual_projection(network.vision_model(pixel_values=images).pooler_output)

    def read(texts: list[str]) -> Tensor:
        told = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        told = {name: told[name].to(network.device) for name in ("input_ids", "attention_mask")}
        return network.text_projection(network.text_model(**told).pooler_output)

    side = network.config.vision_config.image_size
    return Clip(network, embed, read, side, processor.image_mean, processor.image_std)


def _open_clip(architecture: str, weights: str | None) -> Clip:
    import open_clip

    network = open_clip.create_model(architecture, pretrained=weights, require_pretrained=weights is not None)
    tokenizer = open_clip.get_tokenizer(architecture)
    side = network.visual.image_size
    if isinstance(side, tuple):
        if side[0] != side[1]:
            raise UserError(f"CLIP {architecture} takes images of {side[1]}x{side[0]}, but ldm supports only squares")
        side = side[0]

    def read(texts: list[str]) -> Tensor:
        return network.encode_text(tokenizer(texts).to(next(network.parameters()).device))

    return Clip(
        network.to(torch.float32), network.encode_image, read, side, network.visual.image_mean, network.visual.image_std
    )
