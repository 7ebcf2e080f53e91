"""Inpainting masks and low-resolution images: functions of (seed, step, slot)."""

from __future__ import annotations

import torch

from ldm.data.degrading import small_images
from ldm.data.masks import free_form_masks
from ldm.data.random import StepRandom

SLOTS = range(200)


def test_a_mask_depends_only_on_seed_step_and_slot() -> None:
    masks = free_form_masks(StepRandom(0), 3, range(8), (32, 48))
    assert masks.shape == (8, 1, 32, 48)
    assert torch.equal(free_form_masks(StepRandom(0), 3, [5, 2], (32, 48)), masks[[5, 2]])
    for other in (
        free_form_masks(StepRandom(1), 3, range(8), (32, 48)),
        free_form_masks(StepRandom(0), 4, range(8), (32, 48)),
    ):
        assert not torch.equal(other, masks)


def test_masks_cover_all_or_a_part_and_are_never_empty() -> None:
    masks = free_form_masks(StepRandom(0), 1, SLOTS, (64, 64))
    assert torch.equal(masks.unique(), torch.tensor([0.0, 1.0]))
    hidden = masks.mean((1, 2, 3))
    assert hidden.min() > 0
    assert 0.15 < (hidden == 1).float().mean() < 0.35  # a quarter
    some = hidden[hidden < 1]
    assert 0.1 < some.mean() < 0.5
    assert some.std() > 0.1


def test_masks_are_similar_at_other_sizes() -> None:
    small, large = (free_form_masks(StepRandom(0), 1, SLOTS, (side, side)).mean((1, 2, 3)) for side in (32, 128))
    assert torch.corrcoef(torch.stack([small, large]))[0, 1] > 0.95


def test_small_images_are_antialiased() -> None:
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1  # black and white in turn: grey from afar
    small = small_images(board.expand(1, 3, 32, 32), 4, StepRandom(0), 1, [0])
    assert small.shape == (1, 3, 8, 8)
    assert small[..., 1:-1, 1:-1].abs().max() < 0.02
    flat = torch.full((1, 3, 32, 32), 0.4)
    assert torch.allclose(small_images(flat, 4, StepRandom(0), 1, [0]), torch.full((1, 3, 8, 8), 0.4), atol=1e-6)


def test_noise_on_small_images_has_a_random_level_for_each_slot() -> None:
    flat = torch.zeros(len(SLOTS), 3, 64, 64)
    found = small_images(flat, 4, StepRandom(0), 1, SLOTS, noise=0.2)
    levels = found.std((1, 2, 3))
    assert 0 <= levels.min() < 0.02 < 0.18 < levels.max() < 0.23
    assert abs(levels.mean() - 0.1) < 0.01
    assert torch.equal(small_images(flat[:2], 4, StepRandom(0), 1, [7, 3], noise=0.2), found[[7, 3]])
