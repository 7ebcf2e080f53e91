"""Batches of indexed data, for any number of processes and any first step."""

import numpy as np
import pytest
import torch

from ldm.config.data import DataConfig
from ldm.data.loader import BatchShare, TrainingData, make_loader
from ldm.data.order import Order
from ldm.data.sources import IndexedSource


class Numbers(IndexedSource):
    """A source whose image number i is i everywhere."""

    def __len__(self) -> int:
        return 20

    def image(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index, dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [f"image {index}", f"number {index}"]


def batches(share: BatchShare, start: int = 1, end: int = 6, workers: int = 0) -> list:
    data = TrainingData(Numbers(), DataConfig(size=8), share, seed=0)
    return list(make_loader(data, start, end, workers))


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    order = Order(20, seed=0)
    epochs = [[order(20 * epoch + n) for n in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_together_equal_one_process(processes: int, accumulation: int) -> None:
    whole = batches(BatchShare(8))
    parts = [batches(BatchShare(8, rank, processes, accumulation)) for rank in range(processes)]
    for step in range(6):
        mine = [part[step * accumulation + micro] for micro in range(accumulation) for part in parts]
        assert [i for batch in mine for i in batch.indices] == list(whole[step].indices)
        assert [s for batch in mine for s in batch.slots] == list(whole[step].slots)
        assert [c for batch in mine for c in batch.captions] == list(whole[step].captions)
        assert torch.equal(torch.cat([batch.images for batch in mine]), whole[step].images)


def test_batches_do_not_depend_on_the_first_step() -> None:
    whole, rest = batches(BatchShare(8)), batches(BatchShare(8), start=4)
    assert [batch.indices for batch in whole[3:]] == [batch.indices for batch in rest]


def test_batches_do_not_depend_on_the_number_of_loader_processes() -> None:
    for here, there in zip(batches(BatchShare(4)), batches(BatchShare(4), workers=2), strict=True):
        assert here.indices == there.indices
        assert here.captions == there.captions
        assert torch.equal(here.images, there.images)


def test_all_captions_of_an_image_are_used() -> None:
    data = TrainingData(Numbers(), DataConfig(size=8), BatchShare(20), seed=0, images=False)
    captions = {caption for batch in make_loader(data, 1, 20) for caption in batch.captions}
    assert len(captions) == 40
    assert next(iter(make_loader(data, 1, 1))).images is None
