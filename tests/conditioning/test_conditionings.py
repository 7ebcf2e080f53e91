"""Classes become tokens, and maps become as small as latents."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ldm.conditioning.classes import ClassEmbedder, ClassesConfig
from ldm.conditioning.segmentation_map import SegmentationMapConfig, SpatialRescaler


def test_a_class_is_one_token_of_the_table() -> None:
    embedder = ClassEmbedder(ClassesConfig(num_classes=5, hidden_size=6))
    context = embedder(torch.tensor([4, 0]))
    assert context.shape == (2, 1, 6)
    assert torch.equal(context[:, 0], embedder.state_dict()["embedding.weight"][[4, 0]])


def test_a_map_is_averaged_over_squares_and_mixed_to_few_channels() -> None:
    rescaler = SpatialRescaler(SegmentationMapConfig(in_channels=7, channels=3, stages=2))
    image = torch.randn(2, 7, 16, 24)
    expected = F.conv2d(F.avg_pool2d(image, 4), rescaler.state_dict()["channel_mapper.weight"])
    assert torch.allclose(rescaler(image), expected, atol=1e-6)
