"""From one format to the other: single files and folders in the layout of diffusers."""

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
    """What is asked for besides source and destination."""

    config: str | None = None  # of a single file: ours or the original's, by name or path
    format: str | None = None  # one of FORMATS; None: that of the destination's name
    ema: bool = False  # of a single file: the average of the weights
    tokenizer: str | None = None  # of a folder to write: where its tokenizer is
    original_config: bool = False  # of a single file to write: the original's YAML beside it


def convert(source: str, destination: Path, asked: Conversion) -> list[Path]:
    """Write the model in `source`, a single file or a model's folder or name, in the format that is asked for.

    Returns what was written. UserError for everything that keeps it from being whole, and then nothing is written.
    """
    single = _is_single(destination, asked)
    written = [destination]
    if asked.original_config:
        if not single:
            raise UserError(
                "--original-config goes with a single file: a folder of diffusers has its own configuration"
            )
        written.append(destination.with_suffix(".yaml"))
    if single and asked.tokenizer is not None:
        raise UserError("--tokenizer goes with a folder to write: a single file has no tokenizer of its own")
    for path in written:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists already: give another name")
    if not destination.parent.is_dir():
        raise UserError(f"there is no folder {destination.parent} to write into")
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
    """Whether a single file is to be written."""
    if asked.format is not None and asked.format not in FORMATS:
        raise UserError(f"--format {asked.format}: give {' or '.join(FORMATS)}")
    single = destination.suffix in SUFFIXES
    if single and destination.suffix != SINGLE:
        raise UserError(f"{destination}: a single file is written as {SINGLE} alone, never as a pickle")
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
            raise UserError(f"{option} goes with a single file: {source} is not one")
    return read_folder(path if (path / "config.json").is_file() else find_model(source))


def _write_single(file: SingleFile, paths: list[Path]) -> None:
    path, *beside = paths
    originals = [yaml.safe_dump(original_from_contents(folded(file)[0]), sort_keys=False) for _ in beside]
    try:
        write_single_file(file, path)
        for place, text in zip(beside, originals, strict=True):
            save_text(place, text)
    except BaseException:
        path.unlink(missing_ok=True)  # both or neither
        raise
