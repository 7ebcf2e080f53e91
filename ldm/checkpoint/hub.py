"""Download models from the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ldm.errors import UserError

# Folders of gigabytes that do not influence the images.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
TEXTS = (".json", ".txt", ".model")  # configurations and vocabularies
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(?P<variant>\.\w+)?(-\d{5}-of-\d{5})?\.safetensors")


def fetch(name: str) -> Path:
    """Download a Hub id, or find it in the cache, and return its local folder.

    Raises:
        UserError: if neither is possible.
    """
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
            f"no model {name!r}: there is no such folder, and the download from the Hub failed "
            f"({type(error).__name__}): check the name and the connection, or download it elsewhere and give its folder"
        ) from error


def choose(files: Iterable[str]) -> list[str]:
    """Choose the files of a pipeline or a network: configurations, vocabularies and one variant of each part's weights.

    Full precision is preferred. Unused parts, pickles and single-file checkpoints are left out.
    """
    paths = [PurePosixPath(file) for file in files]
    has_text = any(path.parts[0].startswith("text_encoder") for path in paths)
    unused = [name for name in UNUSED if has_text or name != "image_encoder"]
    paths = [path for path in paths if len(path.parts) <= 2 and path.parts[0] not in unused]
    chosen = [path for path in paths if path.suffix in TEXTS]
    variants: dict[PurePosixPath, dict[str, list[PurePosixPath]]] = {}
    for path in paths:
        if found := WEIGHTS.fullmatch(path.name):
            variants.setdefault(path.parent, {}).setdefault(found["variant"] or "", []).append(path)
    for found_variants in variants.values():
        best = min(found_variants, key=lambda variant: (variant != "", variant != ".fp16", variant))
        chosen += found_variants[best]
    return [str(path) for path in chosen]
