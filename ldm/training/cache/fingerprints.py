"""Digests that identify a cache: of the data, the autoencoder's encoder and the frozen text encoder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.conditioning.text.encoder import TextEncoder
from ldm.conditioning.text.files import saved_form
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.data import DataConfig
from ldm.data.cached import EMPTY, CachedData, Facts, file_digest
from ldm.data.sources import Source, digest
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare

PROBE = "A corgi, 23 pizzas & a café's [MASK]"  # its tokens distinguish tokenizers with the same vocabulary


@dataclass(frozen=True)
class Encoders:
    """The encoders whose outputs are cached."""

    autoencoder: Autoencoder
    text: tuple[TextEncoder, Tokenizer] | None = None  # one that is frozen
    classes: bool = False  # whether the images' classes are kept beside

    def to(self, device: torch.device) -> Encoders:
        """Move the encoders to a device."""
        self.autoencoder.to(device, memory_format=torch.channels_last)
        if self.text is not None:
            self.text[0].to(device)
        return self


def facts_of(source: Source, data: DataConfig, encoders: Encoders, share: ProcessShare, per_shard: int) -> Facts:
    """Return the fingerprint of a new cache; all processes must call this."""
    blocks = source.blocks(per_shard)
    digests = share.gather([source.fingerprint(blocks[number]) for number in share.of(len(blocks))])
    text = encoders.text
    if encoders.classes:
        mine = [source.class_fingerprint(blocks[number]) for number in share.of(len(blocks))]
        digests = [*digests, "classes", *share.gather(mine)]
    return Facts(
        images=len(source),
        size=data.size,
        caption_fields=data.caption_fields,
        per_shard=per_shard,
        data=digest(digests),
        autoencoder=autoencoder_digest(encoders.autoencoder),
        text=None if text is None else text_digest(*text),
    )


def autoencoder_digest(autoencoder: Autoencoder) -> str:
    """Digest the weights from images to moments; the decoder and the statistics may change."""
    weights = {
        name: weight
        for name, weight in autoencoder.state_dict().items()
        if name.startswith(("encoder.", "quant_conv."))
    }
    return _weights_digest(weights)


def text_digest(encoder: TextEncoder, tokenizer: Tokenizer) -> str:
    """Digest the weights, sizes and vocabulary of a text encoder, as they are saved."""
    config, weights = saved_form(encoder)
    sizes = config.model_dump_json(exclude={"source", "frozen", "vocab_size"})  # the weights determine the last
    ids, mask = tokenizer(["", PROBE])
    words = [sizes, str(ids.tolist()), str(mask.tolist()), *tokenizer.pieces]
    return digest([_weights_digest(weights), *words])


def check_cache(cache: CachedData, data: DataConfig, encoders: Encoders, share: ProcessShare) -> None:
    """UserError that names how a cache is not what training with these encoders would make; all processes come here.

    Contexts are compared where a frozen text encoder is given and the cache has any.
    """
    facts, found = cache.facts, []
    if facts.size != data.size:
        found.append(f"its images are {facts.size} pixels wide, data.size is {data.size}")
    if data.caption_fields and data.caption_fields != facts.caption_fields:
        found.append(f"its data.caption_fields are {list(facts.caption_fields)}, not {list(data.caption_fields)}")
    if facts.autoencoder != autoencoder_digest(encoders.autoencoder):
        found.append("its latents are those of another autoencoder")
    if encoders.text is not None and facts.text is not None and facts.text != text_digest(*encoders.text):
        found.append("its contexts are those of another text encoder or tokenizer")
    if altered := _altered(cache, share):
        found.append(f"{altered[0]}{f' and {len(altered) - 1} more files' * (len(altered) > 1)} changed since")
    if found:
        raise UserError(f"the cache {cache.folder} does not fit: {'; '.join(found)}; create it again with `ldm cache`")


def _altered(cache: CachedData, share: ProcessShare) -> list[str]:
    """Return files of a cache that are not as they were written."""
    files = [(shard.name, shard.digest) for shard in cache.shards]
    files += [] if cache.empty_digest is None else [(EMPTY, cache.empty_digest)]
    mine = [files[number] for number in share.of(len(files))]
    found = share.gather([_is_file(cache.folder / name, digest) for name, digest in mine])
    return [name for (name, _), whole in zip(files, found, strict=True) if not whole]


def _is_file(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _weights_digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()
