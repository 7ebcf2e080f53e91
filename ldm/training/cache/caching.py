"""Write the latents of images and the contexts of their captions, which training then reads.

Each process writes its own files under temporary names and renames them; the index comes last. An interrupted cache
lacks whole files, which are all that remains to be written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.config.data import DataConfig
from ldm.data.broken import Broken, UnreadableError
from ldm.data.cached import EMPTY, INDEX, CachedData, Facts, Shard, file_digest, is_cache, parse_facts, shard_name
from ldm.data.images import fit
from ldm.data.progress import track
from ldm.data.sources import Block, Source
from ldm.errors import UserError
from ldm.models.precision import require_finite
from ldm.processes import ProcessShare
from ldm.storage.renames import first_facts
from ldm.storage.store import check_access, save_json, save_tensors
from ldm.training.cache.fingerprints import Encoders, facts_of
from ldm.training.latents import BATCH, encode

PER_SHARD = 1024  # images in a file
# What differs between two caches, in the words of the command line.
NAMES = {"size": "data.size", "caption_fields": "data.caption_fields", "per_shard": "--shard-size"}
NAMES |= {"data": "the data's names, sizes or captions", "text": "text encoder", "images": "number of images"}


@dataclass(frozen=True)
class Sample:
    """An image with its captions; a black one if it is unreadable."""

    pixels: np.ndarray  # (size, size, 3)
    captions: list[str] | None
    broken: Broken | None
    label: int = -1  # its class; -1 where it has none


def cache_in(
    run: Path, source: Source, data: DataConfig, encoders: Encoders, share: ProcessShare, device: torch.device
) -> CachedData:
    """Find, finish or write the cache in a run's folder; its name is a digest of its facts."""
    facts = facts_of(source, data, encoders, share, PER_SHARD)
    digest = hashlib.blake2b(json.dumps(first_facts(asdict(facts))).encode(), digest_size=8).hexdigest()
    writer = CacheWriter(run / f"cache-{digest}", source, facts, encoders, share, device)
    return writer.write()


class CacheWriter:
    """Writes a cache of `source`; all processes call the same methods."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        facts: Facts,
        encoders: Encoders,
        share: ProcessShare,
        device: torch.device,
        batch_size: int = BATCH,
    ) -> None:
        self.folder, self.source, self.facts, self.share, self.device = folder, source, facts, share, device
        self.autoencoder, self.text, self.batch_size = encoders.autoencoder, encoders.text, batch_size
        self.classes = encoders.classes
        self.blocks = source.blocks(facts.per_shard)

    def write(self) -> CachedData:
        """Write the files that are missing and return the cache.

        Raises:
            UserError: if existing files belong to another cache.
        """
        if not (self.folder / INDEX).is_file():
            try:
                self._write_missing()
            except OSError as error:
                raise UserError(f"{self.folder} cannot be written: {error.strerror}; continue with --resume") from error
        cache = CachedData(self.folder)
        self._check(cache.facts)
        return cache

    def _write_missing(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.share.is_first:
            for left in self.folder.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
        self.share.wait()
        mine = [self.blocks[number] for number in self.share.of(len(self.blocks))]
        missing = [block for block in mine if not self._is_there(block)]
        work: Iterator[None] = (None for block in missing for _ in self._write_block(block))
        if self.share.is_first:
            if self.text is not None:
                save_tensors(self.folder / EMPTY, self._embed([""]))
            batches = sum(-(-block.images // self.batch_size) for block in missing)
            work = track(work, f"encoding batches of {self.batch_size} images, once", batches)
        for _ in work:
            pass
        self._write_index([self._described(block) for block in mine])

    def _is_there(self, block: Block) -> bool:
        """Return whether a file was written before.

        Raises:
            UserError: if it belongs to another cache.
        """
        path = self._path(block)
        if not path.is_file():
            return False
        try:
            self._check(parse_facts(_recorded(path)["facts"]))
        except (SafetensorError, ValueError, KeyError, TypeError):
            return False  # damaged: it is made again
        return True

    def _check(self, facts: Facts) -> None:
        if differing := facts.differing(self.facts):
            names = ", ".join(NAMES.get(name, name) for name in differing)
            raise UserError(f"{self.folder} contains a cache that differs in {names}: choose another --out")

    def _write_block(self, block: Block) -> Iterator[int]:
        """Make one file; the number of images of each batch as it is done."""
        tensors: dict[str, list[Tensor]] = {"moments": []}
        captions: list[list[str] | None] = []
        labels: list[int] = []
        unreadable: dict[int, list[str]] = {}
        samples = self._samples(block)
        while batch := list(islice(samples, self.batch_size)):
            moments = encode(self.autoencoder, np.stack([sample.pixels for sample in batch]), self.device)
            tensors["moments"].append(moments.float().cpu())
            for sample in batch:
                if sample.broken is not None:
                    unreadable[block.first + len(captions)] = [sample.broken.name, sample.broken.reason]
                captions.append(sample.captions)
                labels.append(sample.label)
            if self.text is not None:
                texts = [caption for sample in batch for caption in sample.captions or ()]
                for name, rows in self._embed(texts).items():
                    tensors.setdefault(name, []).append(rows)
            yield len(batch)
        whole = {name: torch.cat(parts) for name, parts in tensors.items()} | pack_captions(captions)
        whole |= {"labels": torch.tensor(labels)} if self.classes else {}
        # One entry, since safetensors writes several in an order that changes, and files are known by their digests.
        told = {"cache": json.dumps({"facts": asdict(self.facts), "unreadable": unreadable})}
        save_tensors(self._path(block), whole, told)

    def _samples(self, block: Block) -> Iterator[Sample]:
        source = self.source
        for item in source.read(block):
            pixels = np.zeros((self.facts.size, self.facts.size, 3), dtype=np.uint8)
            captions, broken, label = None, None, -1
            try:
                pixels = fit(source.image(item), self.facts.size)
            except UnreadableError as error:
                broken = error.broken
            try:
                captions = source.captions(item)
                label = source.label(item) if self.classes else -1
            except UnreadableError as error:
                broken = error.broken  # as when images are read in training
            yield Sample(pixels, captions, broken, label)

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        """Return contexts and, if they are made, pooled texts, by name."""
        assert self.text is not None
        encoder, tokenizer = self.text
        found: dict[str, list[Tensor]] = {}
        for first in range(0, max(1, len(texts)), self.batch_size):
            ids, mask = tokenizer(texts[first : first + self.batch_size] or [""])
            for name, rows in encoder(ids.to(self.device), mask.to(self.device))._asdict().items():
                if rows is not None:
                    require_finite(rows, "the text encoder")
                    found.setdefault(name, []).append(rows[: len(texts)].float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _described(self, block: Block) -> tuple[Shard, dict[str, list[str]]]:
        """Return what the index records about a file and about its images that cannot be read."""
        path = self._path(block)
        return Shard(path.name, block.first, block.images, file_digest(path)), _recorded(path)["unreadable"]

    def _write_index(self, mine: Sequence[tuple[Shard, dict[str, list[str]]]]) -> None:
        described = self.share.gather(mine)  # waits for everyone
        if self.share.is_first:
            empty = self.folder / EMPTY
            content = {
                "facts": asdict(self.facts),
                "shards": [asdict(shard) for shard, _ in described],
                **({"class_names": list(self.source.class_names)} if self.classes else {}),
                "empty": None if self.text is None else file_digest(empty),
                "unreadable": {index: words for _, found in described for index, words in found.items()},
            }
            save_json(self.folder / INDEX, content)
        self.share.wait()

    def _path(self, block: Block) -> Path:
        return self.folder / shard_name(block.number)


def _recorded(path: Path) -> dict[str, Any]:
    """Return the facts that a file records about itself."""
    check_access(path)
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["cache"])


def check_folder(folder: Path, resume: bool) -> None:
    """Raise UserError if the folder of a new cache is not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        if not is_cache(str(folder)):
            raise UserError(f"{folder} contains other files than a cache: choose another --out")
        if not resume:
            raise UserError(f"{folder} contains a cache: finish it with --resume, or choose another --out")


def pack_captions(captions: Sequence[list[str] | None]) -> dict[str, Tensor]:
    """Pack captions as one row of bytes, with each image's end and the number of captions before each image."""
    texts = [json.dumps(each).encode() for each in captions]
    counts = torch.tensor([len(each or ()) for each in captions])
    return {
        "captions": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
        "caption_ends": torch.tensor([len(text) for text in texts]).cumsum(0),
        "first": counts.cumsum(0) - counts,
    }
