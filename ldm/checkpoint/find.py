"""Where a model is: a run, a directory, a built-in one or one of the Hub, and its parts' folders."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.checkpoint.layouts import OPTIONAL
from ldm.errors import UserError


def resolve(model: str | Path) -> Path:
    """The folder of a model: a run, a directory in diffusers layout, a built-in name, or a Hub id.

    A run without `model_index.json` at its top means its newest step. Raises UserError when it is none of them.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _newest(folder)
    built_in = _weights_folder() / str(model)
    if re.fullmatch(r"[\w.-]+", str(model)) and built_in.is_dir():
        return built_in
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return _from_hub(str(model))
    raise _unknown(model)


def find_autoencoder(model: str | Path) -> Path:
    """The autoencoder's folder of a run or a pipeline, or the folder itself; UserError when there is none."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    resolved = resolve(model)
    if (resolved / "config.json").is_file():
        return resolved
    for name in ("vae", "vqvae"):
        if (resolved / name).is_dir():
            return resolved / name
    raise UserError(f"{resolved} holds no autoencoder: neither config.json nor vae/ nor vqvae/")


def step_folders(run: Path) -> list[Path]:
    """The `step-N` folders of a run, oldest first."""
    steps = [path for path in run.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _newest(folder: Path) -> Path:
    steps = step_folders(folder)
    return folder if (folder / "model_index.json").is_file() or not steps else steps[-1]


def _weights_folder() -> Path:
    import ldm.weights

    return Path(next(iter(ldm.weights.__path__)))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # What is in the parts' folders, or that of a single autoencoder; no single-file checkpoints beside them.
    wanted = ["model_index.json", "config.json", "diffusion_pytorch_model.*", "*/*.json", "*/*.safetensors", "*/*.txt"]
    unwanted = [*(f"{part}/*" for part in OPTIONAL), "*.non_ema.*"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unknown(name, f" ({type(error).__name__} from the Hub)") from error


def _unknown(model: str | Path, why: str = "") -> UserError:
    names = sorted(path.name for path in _weights_folder().iterdir() if (path / "model_index.json").is_file())
    built_in = f"a built-in model ({', '.join(names) or 'none is installed'})"
    return UserError(f"no model {str(model)!r}: neither a run, a diffusers directory, {built_in}, nor a Hub id{why}")
