"""Batches and numbers on their way to the device."""

from collections.abc import Iterator

import pytest
import torch

from ldm.data.preparing import Batch
from ldm.diffusion.level import Level
from ldm.training.transfer import moved, on_device

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where one is")


def batches() -> Iterator[Batch]:
    for step in range(1, 4):
        yield Batch(step, range(2), range(2), torch.full((2, 3, 4, 4), float(step)), ["", ""])


def test_on_a_cpu_batches_are_handed_on_as_they_are() -> None:
    made = list(batches())
    assert all(given is kept for given, kept in zip(on_device(iter(made), torch.device("cpu")), made, strict=True))


@pytest.mark.gpu
@GPU
def test_images_come_to_a_gpu_whole_and_in_order_while_it_computes() -> None:
    device = torch.device("cuda")
    work = torch.randn(4096, 4096, device=device)
    for step, batch in enumerate(on_device(batches(), device), start=1):
        work = (work @ work).clamp(-1, 1)  # the queue is never empty
        assert batch.images is not None
        assert batch.images.device.type == "cuda"
        assert torch.equal(batch.images.cpu(), torch.full((2, 3, 4, 4), float(step)))


@pytest.mark.gpu
@GPU
def test_numbers_come_to_a_gpu_without_waiting_for_it() -> None:
    level = Level(*torch.rand(3, 5).unbind())
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = moved(level, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.sigma.cpu(), level.sigma)
