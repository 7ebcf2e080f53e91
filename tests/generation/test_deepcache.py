"""DeepCache computes the exact output at every n-th level, and the shallow layers alone at the others."""

from __future__ import annotations

import pytest
import torch
from tiny_unets import KINDS, random_context, randomised

from ldm.diffusion.level import Grid, Level
from ldm.generation.deepcache import DeepCacheUNet


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_cached_features_replace_all_but_the_first_convolution_and_the_last_layer(kind: str) -> None:
    config, classes, added = KINDS[kind]
    unet = randomised(config)
    latents, t, half = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor(0.5)
    constants = unet.embed_time(t, classes, added), unet.project_context(random_context(config))
    grid = Grid(tuple(Level(half, half, torch.tensor(step)) for step in (700, 300, 3, -1)))
    cached = DeepCacheUNet(unet, grid, every=3)
    exact, other = unet.denoise(latents, *constants), unet.denoise(latents + 1, *constants)
    assert torch.equal(cached.denoise(700, latents, *constants), exact)
    del unet.down_blocks, unet.mid_block, unet.up_blocks[:-1], unet.up_blocks[0].resnets[:-1]
    del unet.up_blocks[0].attentions[:-1]
    assert torch.allclose(cached.denoise(300, latents, *constants), exact, atol=1e-5)
    shallow = cached.denoise(3, latents + 1, *constants)
    assert not torch.equal(shallow, exact)
    assert not torch.equal(shallow, other)
