"""Tar shards: each sample once an epoch, local or over a bad network, for any number of processes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import encoded
from PIL import Image
from serving import serving

from ldm.config.data import DataConfig
from ldm.data import files
from ldm.data.files import open_file
from ldm.data.loader import BatchShare
from ldm.data.preparing import Batch
from ldm.data.preview import all_captions, some_images
from ldm.data.sources import open_indexed, open_source
from ldm.data.streaming import StreamData, stream
from ldm.errors import UserError

COUNTS = (7, 12, 3, 9, 1, 8)


def write_shards(folder: Path, counts: tuple[int, ...] = COUNTS, side: int = 8, broken: tuple[int, ...] = ()) -> str:
    """Shards of flat images, number n of brightness n, captioned `n`; a brace pattern that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for _ in range(count):
                png = encoded(Image.new("RGB", (side, side), (number % 256,) * 3), "PNG")
                members = {"png": b"broken" if number in broken else png, "txt": str(number).encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"sample{number:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                number += 1
    return f"{folder}/{{000..{len(counts) - 1:03d}}}.tar"


def settings(**shards: int) -> DataConfig:
    return DataConfig.model_validate({"size": 8, "shards": {"shuffle_buffer": 12, **shards}})


def batches(
    data: str, share: BatchShare, start: int = 1, end: int = 20, workers: int = 0, **shards: int
) -> list[Batch]:
    config = settings(**shards)
    source = open_source(data, config)
    return list(stream(StreamData(source, config, share, 0, start, end), workers))


def captions(found: list[Batch]) -> list[int]:
    return [int(caption) for batch in found for caption in batch.captions]


def test_an_epoch_has_each_sample_once_with_its_own_caption(tmp_path: Path) -> None:
    found = batches(write_shards(tmp_path), BatchShare(8))
    numbers = captions(found)
    assert sorted(numbers[:40]) == sorted(numbers[40:80]) == sorted(numbers[80:120]) == list(range(40))
    assert numbers[:40] != numbers[40:80]
    assert numbers[:40] != sorted(numbers[:40])
    images = torch.cat([batch.images for batch in found])
    assert ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == numbers
    assert [index for batch in found for index in batch.indices] == numbers


@pytest.mark.parametrize(("processes", "accumulation", "workers", "lanes"), [(2, 1, 0, 4), (2, 2, 2, 4), (4, 1, 3, 2)])
def test_processes_and_workers_together_have_the_batches_of_one(
    tmp_path: Path, processes: int, accumulation: int, workers: int, lanes: int
) -> None:
    data = write_shards(tmp_path, broken=(3, 4, 20))
    whole = batches(data, BatchShare(8), lanes=lanes, end=8)
    parts = [
        batches(data, BatchShare(8, rank, processes, accumulation), workers=workers * (rank == 0), lanes=lanes, end=8)
        for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        mine = [part[step * accumulation + micro] for micro in range(accumulation) for part in parts]
        assert [slot for part in mine for slot in part.slots] == list(batch.slots)
        assert captions(mine) == captions([batch])
        assert torch.equal(torch.cat([part.images for part in mine]), batch.images)
        assert torch.equal(torch.cat([part.crops for part in mine]), batch.crops)
        found_broken = [broken for part in mine for broken in part.broken]
        assert sorted(b.name for b in found_broken) == sorted(b.name for b in batch.broken)


def test_a_stream_continues_where_it_stopped_and_skips_shards_without_opening_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_shards(tmp_path)
    whole = batches(data, BatchShare(4), lanes=1)
    opened: list[str] = []
    from ldm.data import shards

    original = shards.open_file
    monkeypatch.setattr(shards, "open_file", lambda url: opened.append(url) or original(url))
    rest = batches(data, BatchShare(4), start=10, end=10, lanes=1)
    assert [captions([batch]) for batch in rest] == [captions([whole[9]])]
    assert 0 < len(opened) < len(COUNTS)


def test_an_unreadable_sample_is_named_and_replaced(tmp_path: Path) -> None:
    data = write_shards(tmp_path, broken=(5, 39))
    found = batches(data, BatchShare(8), end=5)
    assert {broken.name.rsplit("/", 1)[1] for batch in found for broken in batch.broken} == {
        "000.tar:sample0005",
        "005.tar:sample0039",
    }
    assert set(range(40)) - set(captions(found)) == {5, 39}
    assert len(captions(found)) == 40


def test_lost_samples_of_a_damaged_shard_are_skipped_by_name(tmp_path: Path) -> None:
    data = write_shards(tmp_path)
    assert len(open_source(data, settings())) == 40  # counted while whole, and written down
    (tmp_path / "index.json").write_text(
        json.dumps({"shardlist": [{"url": f"{i:03d}.tar", "nsamples": count} for i, count in enumerate(COUNTS)]})
    )
    shard = tmp_path / "001.tar"
    shard.write_bytes(shard.read_bytes()[: 5 * 2048 + 700])
    found = batches(data, BatchShare(8), end=5)
    names = {broken.name.rsplit("/", 1)[1] for batch in found for broken in batch.broken}
    assert names == {f"001.tar:{position}" for position in range(5, 12)}
    assert set(range(40)) - set(captions(found)) == set(range(12, 19))  # shard 1 begins with sample 7


def test_lanes_must_fit_batch_and_shards(tmp_path: Path) -> None:
    data = write_shards(tmp_path)
    for lanes in (3, 8):
        with pytest.raises(UserError, match="must divide batch_size 8 and be no more than the 6 shards"):
            batches(data, BatchShare(8), lanes=lanes)


def test_shards_are_named_by_folder_pattern_or_path_and_others_are_errors(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards")
    for data, count in ((tmp_path / "shards", 40), (pattern, 40), (tmp_path / "shards" / "001.tar", 12)):
        assert len(open_source(str(data), settings())) == count
    Image.new("RGB", (8, 8)).save(tmp_path / "shards" / "a.png")
    assert len(open_source(str(tmp_path / "shards"), settings())) == 1  # an image beside somebody's backup
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    for data, words in (
        (tmp_path / "shards" / "{000..009}.tar", "006.tar' and 3 other shards of 10"),
        (tmp_path / "{1..tar.tar", "braces"),
        (tmp_path / "no.tar", "is not a tar file"),
        (tmp_path / "empty.tar", "no samples"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_source(str(data), settings())
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="read as a stream"):
        open_indexed(pattern, settings())


def test_images_and_captions_can_be_spread_over_all_shards(tmp_path: Path) -> None:
    source = open_source(write_shards(tmp_path, broken=(0,)), settings())
    halves = [list(some_images(source, 12, 8, rank, 2)) for rank in range(2)]
    values = sorted(int(image[0, 0, 0]) for half in halves for image in half)
    assert len(values) == 11
    assert min(values) < 7 < 31 < max(values)
    assert sorted(map(int, all_captions(source))) == list(range(40))


def test_buckets_of_streams_raise_an_error(tmp_path: Path) -> None:
    from ldm import config

    loaded = config.load("tiny", ["data.buckets={}"])
    source = open_source(write_shards(tmp_path), loaded.data)
    with pytest.raises(UserError, match=r"data\.buckets needs"):
        source.batches(loaded, BatchShare(8), 1, 2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("ranges", [True, False])
def test_over_a_network_that_drops_every_20th_connection_each_sample_is_read_once(
    tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FIRST_BLOCK", 4096)  # several requests a shard
    counts = (3,) * 90
    write_shards(tmp_path, counts, side=24)
    with serving(tmp_path, drop_every=20, ranges=ranges) as server:
        data = f"{server.url}/{{000..089}}.tar"
        found = batches(data, BatchShare(9), end=30, lanes=3)
        assert sorted(captions(found)) == list(range(270))
        assert not [broken for batch in found for broken in batch.broken]
        assert server.dropped >= 9
        assert (server.resumed > 0) == ranges


@pytest.mark.usefixtures("quick")
def test_a_large_file_is_read_although_every_connection_breaks(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1_000_000)
    (tmp_path / "large.bin").write_bytes(content)
    with serving(tmp_path) as server:
        server.at_most = 150_000
        with open_file(f"{server.url}/large.bin") as file:
            found = file.read()
        assert found == content
        assert server.resumed == 7  # blocks of 128 KiB after the first
        assert server.connections == 2 + 3 + 8  # the file's version twice, failures, blocks


@pytest.mark.usefixtures("quick")
def test_network_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, (2,))
    monkeypatch.setattr(files, "ATTEMPTS", 3)
    with serving(tmp_path) as server:
        with pytest.raises(UserError, match="the server answers 404") as error:
            open_source(f"{server.url}/001.tar", settings())
        server.busy = 2
        assert len(open_source(f"{server.url}/000.tar", settings())) == 2
        server.busy = 99
        with pytest.raises(UserError, match="cannot be read after 3 attempts"):
            open_source(f"{server.url}/000.tar", settings())
        server.busy = 0
        monkeypatch.setattr(files, "FIRST_BLOCK", 1000)
        stream_ = open_file(f"{server.url}/000.tar")
        assert stream_.raw.read(10)
        (tmp_path / "000.tar").touch()
        with pytest.raises(UserError, match="has changed"):
            stream_.read()
    with pytest.raises(UserError, match="cannot be read after 3 attempts") as error:
        open_source("http://127.0.0.1:9/000.tar", settings())
    assert "\n" not in str(error.value)


def test_an_index_beside_the_shards_replaces_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.data import shard_index

    data = write_shards(tmp_path)
    shard_index.write_index(tmp_path, {f"{i:03d}.tar": count for i, count in enumerate(COUNTS)})
    monkeypatch.setattr(shard_index, "_count", lambda url: pytest.fail("counted"))
    assert len(open_source(data, settings())) == 40
    with serving(tmp_path) as server:
        assert len(open_source(f"{server.url}/{{000..005}}.tar", settings())) == 40
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(UserError, match="is not an index of shards"):
        open_source(data, settings())
