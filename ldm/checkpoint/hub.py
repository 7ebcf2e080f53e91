"""Models on the Hugging Face Hub: what of a repository is fetched, and what is said when it cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ldm.errors import UserError

# Parts that say nothing about the images, and cost gigabytes.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
TEXTS = (".json", ".txt", ".model")  # configurations and vocabularies
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(?P<variant>\.\w+)?(-\d{5}-of-\d{5})?\.safetensors")


def fetch(name: str) -> Path:
    """The local folder of a Hub id, fetched or out of the cache; UserError when neither can be."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        try:
            wanted = choose(HfApi().list_repo_files(name))
        except OfflineModeIsEnabled:
            return Path(snapshot_download(name, local_files_only=True))
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"no model {name!r}: there is no such folder, and the Hub gives none ({type(error).__name__}): "
            "check the name and the connection, or fetch it elsewhere and give its folder"
        ) from error


def choose(files: Iterable[str]) -> list[str]:
    """Of a repository's files those of a pipeline or a network: texts and, of each part, one variant of its weights.

    Full precision where there is any; no part that we do not use, no pickles and no single-file checkpoints.
    """
    paths = [PurePosixPath(file) for file in files]
    told_in_words = any(path.parts[0].startswith("text_encoder") for path in paths)
    unused = UNUSED if told_in_words else [name for name in UNUSED if name != "image_encoder"]
    paths = [path for path in paths if len(path.parts) <= 2 and path.parts[0] not in unused]
    chosen = [path for path in paths if path.suffix in TEXTS]
    variants: dict[PurePosixPath, dict[str, list[PurePosixPath]]] = {}
    for path in paths:
        if found := WEIGHTS.fullmatch(path.name):
            variants.setdefault(path.parent, {}).setdefault(found["variant"] or "", []).append(path)
    for held in variants.values():
        chosen += held[min(held, key=lambda variant: (variant != "", variant != ".fp16", variant))]
    return [str(path) for path in chosen]
