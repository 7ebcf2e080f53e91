"""Buckets: their shapes, the assignment of images, and the order of batches."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ldm import config
from ldm.config.data import DataConfig
from ldm.data.loader import BatchShare, TrainingData, make_loader
from ldm.data.order import BucketOrder, sort_into_buckets
from ldm.data.sources import IndexedSource
from ldm.errors import UserError

BUCKETS = DataConfig.model_validate({"size": 64, "buckets": {"max_aspect": 2.5}})


def test_buckets_have_about_the_area_of_the_square_and_sides_that_divide() -> None:
    sizes = BUCKETS.sizes(8)
    assert sizes[0] == (64, 64)
    assert len(sizes) == len(set(sizes)) > 6
    for height, width in sizes:
        assert height % 8 == width % 8 == 0
        assert max(height / width, width / height) <= 2.5
        assert 0.8 * 64 * 64 < height * width <= 64 * 64
    assert DataConfig(size=64).sizes(8) == ((64, 64),)


def test_sides_are_divisible_for_both_networks() -> None:
    loaded = config.load("tiny", ["data.buckets={max_aspect: 3}"])
    assert len(loaded.image_sizes) > 2
    assert all(side % (4 * 2) == 0 for size in loaded.image_sizes for side in size)


def test_images_go_to_the_nearest_aspect_ratio_and_small_buckets_are_dissolved() -> None:
    sizes = BUCKETS.sizes(8)
    shapes = [(100, 100)] * 20 + [(100, 200)] * 20 + [(200, 101)] * 3 + [None]
    members = sort_into_buckets(shapes, sizes, batch_size=8)
    assert sorted(index for indices in members.values() for index in indices) == list(range(44))
    assert all(len(indices) >= 8 for indices in members.values())
    wide = next(size for size, indices in members.items() if 20 in indices)
    assert wide[1] / wide[0] == pytest.approx(2, rel=0.15)
    square = next(size for size, indices in members.items() if 0 in indices)
    assert set(range(20)) | {40, 41, 42} <= set(members[square])
    assert len(sort_into_buckets(shapes[:5], sizes, batch_size=8)) == 1


def bucket_order(counts: list[int], batch_size: int) -> BucketOrder:
    ends = np.cumsum(counts)
    members = {(64, 64 + 8 * b): np.arange(end - n, end) for b, (n, end) in enumerate(zip(counts, ends, strict=True))}
    return BucketOrder(members, batch_size, seed=3)


@pytest.mark.parametrize(("counts", "batch_size"), [([100, 37, 9], 8), ([5000, 3000, 2511], 2048), ([8], 8)])
def test_no_image_repeats_before_the_rest_of_its_bucket_and_none_is_dropped(counts: list[int], batch_size: int) -> None:
    order, total = bucket_order(counts, batch_size), sum(counts)
    for epochs in range(1, 6):
        picks = [order(step) for step in range(1, order.steps_before(epochs) + 1)]
        left_over = total * epochs - len(picks) * batch_size
        assert 0 <= left_over < len(counts) * batch_size
        for size, members in order.members.items():
            visits = Counter(index for pick in picks if pick.size == size for index in pick.indices)
            taken = visits.total()
            assert set(visits) <= set(members)
            assert {visits[index] for index in members} <= {taken // len(members), -(-taken // len(members))}


def test_the_batches_of_an_epoch_are_in_a_random_order() -> None:
    order = bucket_order([100, 100, 100], 5)
    epochs = [[order(60 * epoch + step).size for step in range(1, 61)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert all(set(Counter(epoch).values()) == {20} for epoch in epochs)
    assert epochs[0] != sorted(epochs[0])


class Shapes(IndexedSource):
    """Images of two shapes, bright on the left."""

    def __len__(self) -> int:
        return 40

    def shape(self, index: int) -> tuple[int, int]:
        return (40, 80) if index % 2 else (50, 50)

    def image(self, index: int) -> Image.Image:
        pixels = np.zeros((*self.shape(index), 3), dtype=np.uint8)
        pixels[:, : pixels.shape[1] // 2] = 255
        return Image.fromarray(pixels)

    def captions(self, index: int) -> list[str]:
        return [str(index)]


def batches(share: BatchShare, workers: int = 0) -> list:
    settings = DataConfig.model_validate({"size": 64, "buckets": {}, "random_flip": True, "random_crop": True})
    data = TrainingData(Shapes(), settings, share, 0, sizes=settings.sizes(8))
    return list(make_loader(data, 1, 10, workers))


def test_every_global_batch_has_one_bucket_for_any_number_of_processes() -> None:
    whole = batches(BatchShare(8))
    assert {tuple(batch.images.shape[2:]) for batch in whole} == {(64, 64), (48, 80)}
    parts = [batches(BatchShare(8, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert len({int(caption) % 2 for caption in batch.captions}) == 1
        assert [c for part in parts for c in part[step].captions] == batch.captions
        assert parts[0][step].images.shape[2:] == parts[1][step].images.shape[2:] == batch.images.shape[2:]


def test_batches_contain_original_sizes_and_crops() -> None:
    for batch in batches(BatchShare(8)):
        shapes = [Shapes().shape(index) for index in batch.indices]
        assert batch.original_sizes.tolist() == [list(shape) for shape in shapes]
        assert batch.crops.shape == (8, 2)
        assert batch.crops.min() >= 0


def test_buckets_with_cached_latents_raise_an_error(tmp_path) -> None:
    from ldm.training.runs.run import Run
    from ldm.training.stages.stage import StartingPoint
    from ldm.training.stages.unet import UNetStage

    loaded = config.load("tiny", ["data.buckets={}"])
    with pytest.raises(UserError, match=r"do not support data\.buckets"):
        UNetStage.check(loaded, Run(tmp_path, resume=True), StartingPoint())
