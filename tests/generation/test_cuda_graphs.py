"""Recorded calls of a U-Net are its calls, whatever is given in whatever order."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.generation import TextToImage, cuda_graphs
from ldm.generation.cuda_graphs import CUDAGraphUNet, Replay, Work
from ldm.models.fast import networks
from ldm.models.layers import ResNetBlock
from ldm.models.unet.unet import UNet


class Tape:
    """Records as a GPU does, but by doing the work again: into the memory of the first result."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def record(self, work: Work) -> Replay:
        output = work()
        self.recordings += 1

        def run() -> None:
            self.replays += 1
            output.copy_(work())

        return Replay(run, output)


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(tiny.unet_config()).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return network


def context(unet: UNet, rows: int) -> Tensor:
    return torch.randn(rows, 5, unet.config.cross_attention_dim or 0)


@torch.inference_mode()
def test_steps_prompts_and_batches_in_any_order_give_what_the_network_gives(unet: UNet) -> None:
    tape = Tape()
    replayed = CUDAGraphUNet(unet, tape.record)
    projected = {(rows, number): unet.project_context(context(unet, rows)) for rows in (1, 2) for number in (0, 1)}
    embeddings = unet.embed_time(torch.tensor([900, 500, 10])).split(1)
    found, outputs = [], []
    for rows, number in ((2, 0), (2, 1), (1, 0), (2, 0)):
        for embedding in embeddings:
            latents = torch.randn(rows, 4, 8, 8)
            found.append(replayed.denoise(latents, embedding, projected[rows, number]))
            outputs.append(unet.denoise(latents, embedding, projected[rows, number]))
    assert all(torch.equal(one, other) for one, other in zip(found, outputs, strict=True))  # also those of before
    assert (tape.recordings, tape.replays) == (2, 12)


@torch.inference_mode()
def test_the_recording_that_was_not_used_for_longest_is_given_up(unet: UNet) -> None:
    tape = Tape()
    replayed = CUDAGraphUNet(unet, tape.record)
    [embedding], projected = unet.embed_time(torch.tensor([9])).split(1), unet.project_context(context(unet, 1))
    sides = [2 * (2 + number) for number in range(cuda_graphs.MOST + 1)]
    for side in (*sides[:-1], sides[0], sides[-1], sides[0]):
        replayed.denoise(torch.randn(1, 4, side, side), embedding, projected)
    assert tape.recordings == len(sides)
    replayed.denoise(torch.randn(1, 4, sides[1], sides[1]), embedding, projected)
    assert tape.recordings == len(sides) + 1


def generated(pipe: TextToImage) -> list[np.ndarray]:
    options = {"guidance_scale": 2.0, "num_inference_steps": 3}
    return [np.asarray(image) for seed in (0, 1) for image in pipe(["a dog", "a hat"], seed=seed, **options)]


@pytest.mark.slow
def test_a_compiled_pipeline_generates_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs are captured as for any backend; to compile them for this CPU would take minutes and show no more.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(networks, "works", lambda dtype: False)  # as on a GPU, where no weights are laid out
    pipeline, tape = tiny.bert(), Tape()
    monkeypatch.setattr(cuda_graphs, "record_on_gpu", tape.record)
    monkeypatch.setattr(cuda_graphs, "require_gpu", lambda device: None)
    pipe = TextToImage(pipeline, compiled=True)
    blocks = [block for block in pipe.prepared_unet.get(pipeline.denoiser).modules() if isinstance(block, ResNetBlock)]
    assert all("shifted" in vars(block) for block in blocks)
    for one, other in zip(generated(pipe), generated(TextToImage(pipeline, prepare=False)), strict=True):
        np.testing.assert_allclose(one, other, atol=1)
    assert (tape.recordings, tape.replays) == (1, 6)
    assert not any("shifted" in vars(block) for block in pipeline.denoiser.modules())
    copied = networks.prepare_for_sampling(pipe.prepared_unet.get(pipeline.denoiser))  # which computes by itself
    assert not any("shifted" in vars(block) or block._compiled_call_impl for block in copied.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one")
def test_on_a_gpu_compiled_and_recorded_steps_give_the_plain_ones_images() -> None:
    pipeline = tiny.bert()
    compiled, plain = (TextToImage(pipeline, compiled=compiled).to("cuda") for compiled in (True, False))
    for one, other in zip(generated(compiled), generated(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU is taken where there is no CUDA device")
def test_elsewhere_than_on_a_gpu_compiling_raises_an_error() -> None:
    with pytest.raises(UserError, match="compiling is for GPUs, not for cpu"):
        TextToImage.from_pretrained(compiled=True)
    with pytest.raises(UserError, match="compiling is for GPUs, not for cpu"):
        generated(TextToImage(tiny.bert(), compiled=True))
