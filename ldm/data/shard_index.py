"""The numbers of samples in shards: from an index beside them, or counted once and cached."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ldm.data.cache import default_cache
from ldm.data.files import is_remote, open_file, read_if_present, version_of
from ldm.data.progress import track
from ldm.data.shard_names import split_name
from ldm.errors import UserError

# {"shardlist": [{"url": "000000.tar", "nsamples": 1000}, ...]}, as WebDataset's own tools write it
INDEX = "index.json"
RULE = 2  # of grouping members to samples; counts of other rules are not reused


def sample_counts(urls: Sequence[str]) -> list[int]:
    """Return number of samples in each shard."""
    known: dict[str, int] = {}
    for folder in {url.rpartition("/")[0] for url in urls}:
        known |= _read_index(folder)
    unknown = [url for url in urls if url not in known]
    if unknown:
        with ThreadPoolExecutor(8) as pool:  # each waits for a disk or a network
            counts = track(pool.map(_cached_count, unknown), "counting samples of shards, once", len(unknown))
            known |= dict(zip(unknown, counts, strict=True))
    return [known[url] for url in urls]


def write_index(folder: Path, counts: dict[str, int]) -> None:
    """Write the index of the shards in `folder`."""
    shardlist = [{"url": name, "nsamples": count} for name, count in counts.items()]
    content = {"wids_version": 1, "shardlist": shardlist}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_index(folder: str) -> dict[str, int]:
    """Return samples by shard, empty without an index."""
    prefix = f"{folder}/" if folder else ""
    content = read_if_present(prefix + INDEX)
    if content is None:
        return {}
    try:
        return {prefix + entry["url"]: int(entry["nsamples"]) for entry in json.loads(content)["shardlist"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{prefix}{INDEX} is not an index of shards: expected a shardlist of url and nsamples; delete it"
        ) from error


def _cached_count(url: str) -> int:
    """Count samples, cached as long as the shard does not change."""
    facts = f"{RULE} {url if is_remote(url) else Path(url).resolve()} {version_of(url)}"
    path = default_cache() / "shards" / hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
    if path.is_file():
        return int(path.read_text())
    count = _count(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        work.write_text(str(count))
        work.replace(path)
    except OSError:
        return count  # counted again next time
    return count


def _count(url: str) -> int:
    """Count groups of neighbouring members with one key."""
    count, last = 0, None
    with open_file(url) as file:
        try:
            # Only local files are seekable; mode r|* reads the contents that it skips.
            with tarfile.open(fileobj=file, mode="r|*" if is_remote(url) else "r:*") as archive:
                for member in archive:
                    key = split_name(member.name)[0]
                    if not member.isreg() or key is None:
                        continue
                    count, last = count + (key != last), key
        except (tarfile.TarError, EOFError) as error:
            if not count:
                raise UserError(f"{url} is not a tar file: {' '.join(str(error).split())}") from error
    return count
