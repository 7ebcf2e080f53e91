"""The contract of denoising networks: what a third party inherits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.denoiser import Added, DenoiserConfig, DenoiserNetwork


class ConvConfig(DenoiserConfig):
    hidden_channels: int = 8


class ConvNet(DenoiserNetwork):
    """Two convolutions and a time embedding."""

    section = ConvConfig

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.time = nn.Linear(1, config.hidden_channels)
        self.inner = nn.Conv2d(config.in_channels, config.hidden_channels, 3, padding=1)
        self.outer = nn.Conv2d(config.hidden_channels, config.out_channels, 3, padding=1)

    def embed_time(
        self, t: Tensor, classes: Tensor | None = None, added: Added | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        return self.time(t.to(self.dtype)[:, None] / 1000)

    def denoise(self, latents: Tensor, embedding: Tensor, context: list[object]) -> Tensor:
        return self.outer((self.inner(latents) + embedding[:, :, None, None]).tanh())


@pytest.fixture
def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(ConvConfig(hidden_channels=6, sample_size=8))


def test_a_denoiser_of_three_methods_is_saved_and_loaded(network: ConvNet, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    loaded = ConvNet.from_pretrained(tmp_path)
    assert loaded.config == network.config
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0])
    assert torch.equal(loaded(latents, t), network(latents, t))


def test_its_folder_is_not_loaded_as_another_class(network: ConvNet, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("ConvNet", "OtherNet"))
    with pytest.raises(UserError, match="OtherNet"):
        ConvNet.from_pretrained(tmp_path)


def test_it_takes_no_context_by_default(network: ConvNet) -> None:
    assert (network.config.multiple, network.config.context_width, network.config.num_classes) == (1, None, None)
    with pytest.raises(ValueError, match="ConvNet takes no context"):
        network(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.randn(1, 3, 5))


def test_example_inputs_are_arguments_of_forward(network: ConvNet) -> None:
    assert network(**network.example_inputs(8, 3)).shape == (1, 4, 8, 8)
