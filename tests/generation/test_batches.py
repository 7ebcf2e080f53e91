"""How many images are generated at a time, and what happens if memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.generation import TextToImage, batch_size
from ldm.models.cost import image_memory


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(tiny.bert())


def draw(pipe: TextToImage, **options: Any) -> list[np.ndarray]:
    images = pipe("a red dog", num_inference_steps=3, **options)
    return [np.asarray(image).astype(int) for image in images]


@pytest.fixture
def narrow(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Memory that holds a U-Net with so many rows; the list gets the rows of each call."""

    def limit(rows: int, error: Exception, at_call: int = 0) -> list[int]:
        called: list[int] = []
        denoise = pipe.pipeline.denoiser.denoise

        def limited(x: Tensor, *rest: Any) -> Tensor:
            called.append(len(x))
            if len(x) > rows and len(called) > at_call:
                raise error
            return denoise(x, *rest)

        monkeypatch.setattr(pipe.pipeline.denoiser, "denoise", limited)
        return called

    return limit


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_images_are_the_same(
    error: Exception, eta: float, pipe: TextToImage, narrow: Callable[..., list[int]]
) -> None:
    expected = draw(pipe, num_images=6, seed=3, eta=eta, batch_size=1)
    reported: list[tuple[int, int]] = []
    called = narrow(4, error, at_call=2)  # two steps are done before the first batch fails
    found = draw(pipe, num_images=6, seed=3, eta=eta, progress=lambda done, total: reported.append((done, total)))
    assert called == [12, 12, 12, 6, *[2, 2, 2] * 6]  # two rows an image
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) <= 1
    assert reported == [(1, 3), (2, 3), *((i, 18) for i in range(1, 19))]


def test_what_does_not_fit_at_all_is_said_in_one_line(pipe: TextToImage, narrow: Callable[..., list[int]]) -> None:
    called = narrow(1, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(UserError, match="does not fit the memory: generate smaller images"):
        draw(pipe, num_images=2)
    with pytest.raises(UserError, match="3 images at a time do not fit the memory: give a smaller batch size"):
        draw(pipe, num_images=3, batch_size=3)
    assert called == [4, 2, 6]  # a size that was asked for is kept


def test_other_errors_are_not_taken_for_a_lack_of_memory(pipe: TextToImage, narrow: Callable[..., list[int]]) -> None:
    called = narrow(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        draw(pipe, num_images=4)
    assert called == [8]


@pytest.mark.parametrize(("free", "sizes"), [(0.0, [1, 1, 1]), (5.0, [2, 1]), (1e9, [3])])
def test_the_size_follows_the_free_memory(
    free: float, sizes: list[int], pipe: TextToImage, narrow: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = image_memory(pipe.pipeline.denoiser, pipe.pipeline.autoencoder, (4, 16, 16), rows=2)
    monkeypatch.setattr(batch_size, "free_memory", lambda device: pipe.pending + free * one)
    called = narrow(100, RuntimeError())
    draw(pipe, num_images=3)
    assert called == [2 * size for size in sizes for _ in range(3)]


def test_prepared_networks_take_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TextToImage(tiny.bert())
    networks = pipe.pipeline.denoiser, pipe.pipeline.autoencoder
    assert pipe.pending == sum(weight.nbytes for network in networks for weight in network.parameters())
    one = image_memory(pipe.pipeline.denoiser, pipe.pipeline.autoencoder, (4, 16, 16), rows=2)
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 8.5 * one)
    assert batch_size.automatic(pipe.pipeline, (4, 16, 16), 2, reserved=int(4.3 * one)) == 2
    assert batch_size.automatic(pipe.pipeline, (4, 16, 16), 2) == 4
    draw(pipe)
    assert pipe.pending == 0
    assert TextToImage(pipe.pipeline, prepare=False).pending == 0


def test_more_rows_pixels_and_channels_take_more_memory(pipe: TextToImage) -> None:
    networks = pipe.pipeline.denoiser, pipe.pipeline.autoencoder
    small = image_memory(*networks, (4, 16, 16), rows=1)
    assert image_memory(*networks, (4, 32, 32), rows=1) == 4 * small
    assert image_memory(*networks, (4, 16, 16), rows=20) > small
    wider = tiny.unet_config(block_out_channels=(32, 64, 64))
    assert wider.activations() == 2 * pipe.pipeline.denoiser.config.activations()


def test_a_containers_limit_counts_as_the_machines(tmp_path: Path) -> None:
    assert list(batch_size._free_in_groups(tmp_path)) == []
    for name, text in {"memory.max": "max\n", "memory.current": "5\n"}.items():
        (tmp_path / name).write_text(text)
    assert list(batch_size._free_in_groups(tmp_path)) == []  # no limit
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.current").write_text("1096\n")
    assert list(batch_size._free_in_groups(tmp_path)) == [3000]
    assert 0 < batch_size.free_memory(torch.device("cpu")) < 1e15


def test_batches_have_prompts_of_one_length_in_order() -> None:
    assert batch_size.split([4, 5, 6, 7, 8, 9], 2, lambda number: number // 7) == [[4, 5], [6], [7, 8], [9]]
