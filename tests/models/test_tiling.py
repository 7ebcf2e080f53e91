"""Tiled encoding and decoding equal the whole image, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from running import PEAK
from torch import Tensor

from ldm.errors import UserError
from ldm.models import tiling as tiled
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.tiling import SharedNorms, Tiling, decode_tiled, encode_tiled, spans
from ldm.registry import BOTTLENECKS

SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_attention": False}


def network(kind: str = "kl", **changes: object) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(BOTTLENECKS[kind].section(**SMALL | changes)).double().eval()


def images(height: int, width: int) -> Tensor:
    """Smooth images, darker on one side, so that the statistics of tiles differ."""
    down, across = torch.linspace(-1, 1, height).double()[:, None], torch.linspace(-1, 1, width).double()
    wave = torch.sin(7 * down + 3 * across) * across
    return torch.stack([wave, across.expand(height, width), wave * down])[None]


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(64, 64, 16), (65, 64, 16), (200, 64, 16), (31, 10, 4), (40, 10, 0)]
)
def test_tiles_cover_a_side_and_each_position_is_nearest_to_one_tile(length: int, size: int, overlap: int) -> None:
    side = spans(length, Tiling(size, overlap))
    assert side[0].start == 0
    assert side[-1].stop == length
    assert [at for span in side for at in range(span.own_start, span.own_stop)] == list(range(length))
    for before, after in pairwise(side):
        assert before.stop - after.start >= overlap
        assert after.start <= after.own_start <= before.stop


def test_one_tile_equals_the_whole_image_bit_by_bit() -> None:
    vae, x = network(), images(32, 48)
    latents = vae.encode(x).mode()
    assert torch.equal(encode_tiled(vae, x, Tiling(24, 8)).mode(), latents)
    assert torch.equal(decode_tiled(vae, latents, Tiling(24, 8)), vae.decode(latents))


@pytest.mark.slow
# The remaining differences are at the borders of tiles; they are wider if the coarsest level is tiled, too.
@pytest.mark.parametrize(("coarsest_is_whole", "left"), [(True, 1e-4), (False, 5e-3)])
def test_tiles_approach_the_whole_image_with_each_measuring_pass(
    coarsest_is_whole: bool, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "WHOLE", 10**6 if coarsest_is_whole else 0)
    vae, x = network(scaling_factor=0.7), images(64, 96)
    latents = vae.encode(x).mode()
    whole = vae.decode(latents).detach()

    def errors(tiling: Tiling) -> list[float]:
        pairs = (encode_tiled(vae, x, tiling).mode(), latents), (decode_tiled(vae, latents, tiling), whole)
        return [((made - exact).abs().mean() / exact.abs().mean()).item() for made, exact in pairs]

    assert min(errors(Tiling(28, 24, passes=0))) > 0.1  # with statistics of single tiles: seams
    assert max(errors(Tiling(28, 24, passes=16))) < left


def test_tiling_supports_codebooks_and_odd_sides() -> None:
    vae, x = network(kind="vq", codebook_size=16), images(90, 134)
    posterior = encode_tiled(vae, x, Tiling(24, 12))
    assert posterior.mode().shape == (1, 4, 45, 67)
    assert decode_tiled(vae, posterior.mode(), Tiling(24, 12)).shape == x.shape


def test_norms_are_restored_after_tiling() -> None:
    vae = network()
    before = vae.encode(images(64, 64)).mode()
    encode_tiled(vae, images(64, 64), Tiling(16, 8))
    assert torch.equal(vae.encode(images(64, 64)).mode(), before)
    shared = SharedNorms(vae)
    with pytest.raises(RuntimeError, match="broken"), shared.installed():
        raise RuntimeError("broken")
    assert all("forward" not in vars(norm) for norm in shared.norms)


@pytest.mark.parametrize("options", [{"size": 8, "overlap": 8}, {"overlap": -1}, {"passes": -1}])
def test_an_invalid_tiling_raises_an_error(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="invalid tiling"):
        replace(Tiling(), **options)


@pytest.mark.slow
def test_with_trained_weights_tiles_differ_by_less_than_half_a_percent() -> None:
    from PIL import Image

    from ldm.checkpoint.find import find_autoencoder
    from ldm.data.images import fit, to_tensor

    vae = Autoencoder.from_pretrained(find_autoencoder("emoji"))
    image = Image.open("docs/images/grid.png").convert("RGB").crop((0, 0, 262, 262))
    x = to_tensor(fit(image.resize((1024, 1024), Image.Resampling.LANCZOS), 1024)[None])
    with torch.inference_mode():
        whole = vae.decode(vae.encode(x).mode())
    there_and_back = decode_tiled(vae, encode_tiled(vae, x).mode())
    assert (there_and_back - whole).abs().mean() < 0.005 * 2  # of the range from -1 to 1


MEMORY = """
import torch
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.tiling import Tiling, decode_tiled, encode_tiled
torch.set_num_threads(2)
vae = Autoencoder(AutoencoderConfig(block_out_channels=(2, 4, 4), layers_per_block=1, norm_num_groups=2)).eval()
image = torch.rand(1, 3, 4096, 4096) * 2 - 1
decoded = decode_tiled(vae, encode_tiled(vae, image, Tiling(passes=0)).mode(), Tiling(passes=0))
assert decoded.shape == image.shape
print(peak())
"""


@pytest.mark.slow
def test_an_image_of_4096_pixels_takes_less_than_4_gibibytes() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK + MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * 2**30


def test_many_images_are_processed_in_small_batches_and_large_ones_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = network(), torch.cat([images(32, 32), -images(32, 32), images(32, 32) / 2])
    latents = vae.encode(x).mode()
    monkeypatch.setattr(tiled, "BATCH_POSITIONS", 2 * 16 * 16)
    assert torch.allclose(tiled.encode(vae, x).mode(), latents, rtol=0, atol=1e-12)
    assert torch.allclose(tiled.decode(vae, latents), vae.decode(latents), rtol=0, atol=1e-12)
    monkeypatch.setattr(tiled, "WHOLE", 16 * 16 - 1)
    monkeypatch.setattr(tiled, "Tiling", lambda: Tiling(12, 4))
    assert torch.equal(tiled.decode(vae, latents[:1]), decode_tiled(vae, latents[:1], Tiling(12, 4)))
    assert not torch.equal(tiled.decode(vae, latents[:1]), vae.decode(latents[:1]))


def test_the_caller_chooses_the_side_of_a_tile_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = network(), images(64, 96)
    latents = vae.encode(x).mode()
    assert torch.equal(tiled.encode(vae, x, tile=40).mode(), encode_tiled(vae, x, Tiling(20, 5)).mode())
    assert torch.equal(tiled.decode(vae, latents, tile=40), decode_tiled(vae, latents, Tiling(20, 5)))
    assert not torch.equal(tiled.decode(vae, latents, tile=40), vae.decode(latents))
    monkeypatch.setattr(tiled, "WHOLE", 0)
    assert torch.equal(tiled.encode(vae, x, tile=0).mode(), latents)
    assert torch.equal(tiled.decode(vae, latents, tile=0), vae.decode(latents))


@pytest.mark.parametrize("tile", [30, 41, -40])
def test_an_invalid_side_of_a_tile_raises_an_error(tile: int) -> None:
    with pytest.raises(UserError, match=f"tile is {tile}: .* a multiple of 2 and at least 32 pixels, or 0"):
        tiled.decode(network(), torch.zeros(1, 4, 40, 40), tile)
