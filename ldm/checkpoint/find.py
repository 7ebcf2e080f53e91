"""Find models: runs, directories, built-in models and Hub ids."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.checkpoint.hub import fetch
from ldm.errors import UserError


def find_model(model: str | Path) -> Path:
    """Return the folder of a model: a run, a directory in diffusers layout, a built-in model or a Hub id.

    A run without `model_index.json` at its top means its newest step.

    Raises:
        UserError: if there is no such model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _newest(folder)
    if folder.is_file():
        raise UserError(f"{model} is a file, not the folder of a model: convert a single file with `ldm convert`")
    if (found := built_in(str(model))) is not None:
        return found
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model)):
        return fetch(str(model))
    raise _unknown(model)


def built_in(name: str) -> Path | None:
    """Return the folder of a model that is installed with the package, or None."""
    folder = _weights_folder() / name
    return folder if re.fullmatch(r"[\w.-]+", name) and folder.is_dir() else None


def find_autoencoder(model: str | Path) -> Path:
    """Return the autoencoder's folder of a run or a pipeline, or the folder itself.

    Raises:
        UserError: if there is none.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    resolved = find_model(model)
    if (resolved / "config.json").is_file():
        return resolved
    for name in ("vae", "vqvae"):
        if (resolved / name).is_dir():
            return resolved / name
    raise UserError(f"{resolved} has no autoencoder: neither config.json nor vae/ nor vqvae/")


def step_folders(run: Path) -> list[Path]:
    """List the `step-N` folders of a run, oldest first."""
    steps = [path for path in run.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _newest(folder: Path) -> Path:
    steps = step_folders(folder)
    return folder if (folder / "model_index.json").is_file() or not steps else steps[-1]


def _weights_folder() -> Path:
    import ldm.weights

    return Path(next(iter(ldm.weights.__path__)))


def _unknown(model: str | Path) -> UserError:
    names = sorted(path.name for path in _weights_folder().iterdir() if (path / "model_index.json").is_file())
    installed = f"a built-in model ({', '.join(names) or 'none is installed'})"
    return UserError(f"no model {str(model)!r}: give a run, a diffusers directory, {installed} or a Hub id")
