"""Convert between single files and folders in the layout of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from ldm.checkpoint.compvis.files import SingleFile, folded, read_single_file, write_single_file
from ldm.checkpoint.compvis.folders import read_folder, write_folder
from ldm.checkpoint.compvis.original_config import original_from_contents
from ldm.checkpoint.compvis.reading import SUFFIXES
from ldm.checkpoint.find import find_model
from ldm.errors import UserError
from ldm.storage.store import save_text

FORMATS = ("diffusers", "compvis")
SINGLE = ".safetensors"


@dataclass(frozen=True)
class Conversion:
    """Options of a conversion."""

    config: str | None = None  # of a single file: name or path, in our format or the original's
    format: str | None = None  # one of FORMATS; default: from the name of the destination
    ema: bool = False  # read the EMA of a single file
    tokenizer: str | None = None  # folder or Hub id of the tokenizer, when a folder is written
    original_config: bool = False  # also write the original's YAML beside a single file


def convert(source: str, destination: Path, asked: Conversion) -> list[Path]:
    """Write the model in `source`, a single file or a model's folder or name, to `destination`.

    Returns:
        The paths that were written.

    Raises:
        UserError: for anything that prevents a complete result; nothing is written then.
    """
    single = _is_single(destination, asked)
    written = [destination]
    if asked.original_config:
        if not single:
            raise UserError(
                "--original-config requires a single file as DST: a diffusers folder has its own configuration"
            )
        written.append(destination.with_suffix(".yaml"))
    if single and asked.tokenizer is not None:
        raise UserError("--tokenizer requires a folder as DST: a single file has no tokenizer")
    for path in written:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} already exists: choose another name")
    if not destination.parent.is_dir():
        raise UserError(f"the folder {destination.parent} does not exist")
    file = _read(source, asked)
    try:
        if single:
            _write_single(file, written)
        else:
            write_folder(file, destination, asked.tokenizer)
    except OSError as error:
        raise UserError(f"{destination} cannot be written: {error.strerror or error}") from error
    return written


def _is_single(destination: Path, asked: Conversion) -> bool:
    """Return whether to write a single file."""
    if asked.format is not None and asked.format not in FORMATS:
        raise UserError(f"--format {asked.format}: give {' or '.join(FORMATS)}")
    single = destination.suffix in SUFFIXES
    if single and destination.suffix != SINGLE:
        raise UserError(f"{destination}: a single file is written as {SINGLE} only, never as a pickle")
    if asked.format is not None and single != (asked.format == "compvis"):
        needed = f"must end in {SINGLE}" if asked.format == "compvis" else f"is a folder: it must not end in {SINGLE}"
        raise UserError(f"{destination}: with --format {asked.format} the destination {needed}")
    return single


def _read(source: str, asked: Conversion) -> SingleFile:
    path = Path(source).expanduser()
    if path.is_file() or path.suffix in SUFFIXES:
        return read_single_file(path, asked.config, asked.ema)
    for option, given in (("--config", asked.config is not None), ("--ema", asked.ema)):
        if given:
            raise UserError(f"{option} requires a single file as SRC, but {source} is not one")
    return read_folder(path if (path / "config.json").is_file() else find_model(source))


def _write_single(file: SingleFile, paths: list[Path]) -> None:
    path, *beside = paths
    originals = [yaml.safe_dump(original_from_contents(folded(file)[0]), sort_keys=False) for _ in beside]
    try:
        write_single_file(file, path)
        for place, text in zip(beside, originals, strict=True):
            save_text(place, text)
    except BaseException:
        path.unlink(missing_ok=True)  # write both or neither
        raise
