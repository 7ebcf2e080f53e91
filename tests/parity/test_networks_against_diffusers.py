"""Our networks are those of diffusers and transformers: equal names, equal numbers, files that load both ways."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from torch import Tensor, nn

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields, scheduler_to_fields
from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.files import load_text_encoder, save_text_encoder
from ldm.conditioning.text.tokenizer_files import load_tokenizer, save_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.fields import autoencoder_from_fields, autoencoder_to_fields

HERE = Path("config.json")


def randomise(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (weight.ndim == 1))


def assert_close(made: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value: float32 sums in another order."""
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


AUTOENCODERS = [
    AutoencoderConfig(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4),
    AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=8, latent_channels=3),
    AutoencoderConfig(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, mid_block_attention=False),
    AutoencoderConfig(block_out_channels=(16, 8, 24, 32), layers_per_block=2, norm_num_groups=8, latent_channels=16),
    AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, in_channels=1, out_channels=1),
]


@pytest.mark.parametrize("config", AUTOENCODERS)
def test_autoencoders_have_the_names_the_fields_and_the_numbers_of_diffusers(config: AutoencoderConfig) -> None:
    config = config.model_copy(update={"scaling_factor": 0.3})
    theirs = diffusers.AutoencoderKL.from_config(autoencoder_to_fields(config)).eval()
    ours = Autoencoder(config).eval()
    randomise(theirs, 0)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, config.in_channels, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior, reference = ours.encode(images), theirs.encode(images).latent_dist
        assert_close(posterior.moments, reference.parameters)
        assert_close(posterior.kl(), reference.kl())
        noise = torch.randn(2, config.latent_channels, *posterior.moments.shape[2:])
        latents = posterior.sample(noise=noise)
        assert_close(latents, (reference.mean + reference.std * noise) * 0.3)
        assert_close(ours.decode(latents), theirs.decode(latents / 0.3).sample)
    assert autoencoder_from_fields(dict(theirs.config), HERE) == config


@pytest.mark.parametrize(
    ("scaling", "shift"),
    [
        (None, None),
        (0.6, None),
        (0.6, 1.5),
        ((0.5, 2.0, 7.0), None),
        ((0.5, 2.0, 7.0), (3.0, -2.0, 0.1)),
        (1.3, (3.0, -2.0, 0.1)),
    ],
)
def test_statistics_are_folded_so_that_a_scaling_factor_alone_gives_our_latents_and_images(
    scaling: float | tuple[float, ...] | None, shift: float | tuple[float, ...] | None, tmp_path: Path
) -> None:
    config = AUTOENCODERS[1].model_copy(update={"scaling_factor": scaling, "shift_factor": shift})
    ours = Autoencoder(config)
    randomise(ours, 3)
    ours.save_pretrained(tmp_path)
    theirs, found = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False, output_loading_info=True)
    assert not any(found.values()), found
    assert theirs.config.shift_factor is None
    again = Autoencoder.from_pretrained(tmp_path)
    assert (again.config.scaling_factor is None) is (scaling is None)
    factor = theirs.config.scaling_factor
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        latents = ours.encode(images).sample(noise=noise)
        posterior = theirs.encode(images).latent_dist
        assert_close((posterior.mean + posterior.std * noise) * factor, latents)
        assert_close(theirs.decode(latents / factor).sample, ours.decode(latents))
        assert_close(again.encode(images).sample(noise=noise), latents)
        assert_close(again.decode(latents), ours.decode(latents))


def test_an_autoencoder_that_diffusers_wrote_is_ours(tmp_path: Path) -> None:
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        shift_factor=0.1,
    )
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.from_pretrained(tmp_path)
    assert (ours.config.scaling_factor, ours.config.shift_factor) == (0.18215, 0.1)
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())


SCHEDULES = [
    DiffusionConfig(),
    DiffusionConfig(prediction="v", schedule=schedule_config(zero_terminal_snr=True, spacing="trailing")),
    DiffusionConfig(prediction="x0", schedule=schedule_config(kind="cosine", set_alpha_to_one=True, steps_offset=0)),
    DiffusionConfig(
        schedule=schedule_config(kind="linear", num_train_timesteps=400, beta_end=0.03, spacing="linspace")
    ),
]


@pytest.mark.parametrize("config", SCHEDULES)
def test_schedules_come_back_from_diffusers(config: DiffusionConfig) -> None:
    theirs, unused = diffusers.DDIMScheduler.from_config(scheduler_to_fields(config), return_unused_kwargs=True)
    assert all(name.startswith("_") for name in unused)
    assert scheduler_from_fields(dict(theirs.config), HERE) == config


def test_stable_diffusions_own_scheduler_is_understood() -> None:
    theirs = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    assert scheduler_from_fields(dict(theirs.config) | {"_class_name": "PNDMScheduler"}, HERE) == DiffusionConfig()


CAPTIONS = ["a dog playing a trumpet", "Three blue cats, and a café!", "a big apple to the left of a small cow 漢字"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 120, 12)


@pytest.mark.parametrize("loader", [transformers.BertTokenizer, transformers.AutoTokenizer])
def test_transformers_makes_the_same_ids(loader: type, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    theirs = loader.from_pretrained(tmp_path)
    captions = [*CAPTIONS, "", "an unseen ZEBRA, naïve?", "dog " * 30, "[MASK] and [PAD]", "a\tb\nc \u200b d"]
    made = theirs(captions, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    for ours in (tokenizer, load_tokenizer(tmp_path)):
        ids, mask = ours(captions)
        assert torch.equal(ids, made.input_ids)
        assert torch.equal(mask, made.attention_mask)
    assert (theirs.model_max_length, theirs.pad_token_id, len(theirs)) == (12, 0, tokenizer.vocab_size)


@pytest.mark.parametrize("use_mask", [True, False])
def test_transformers_makes_the_same_context(use_mask: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = BertConfig(max_length=12, hidden_size=24, num_hidden_layers=3, use_attention_mask=use_mask)
    ours = BertTextEncoder(config, tokenizer.vocab_size)
    randomise(ours, 0)
    save_text_encoder(ours, tmp_path / "ours")
    theirs, found = transformers.BertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(found.values()), found
    assert theirs.config.use_attention_mask is use_mask
    ids, mask = tokenizer(CAPTIONS)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask if use_mask else None).last_hidden_state
        assert_close(ours(ids, mask).context, expected)
        theirs.save_pretrained(tmp_path / "theirs")
        assert_close(load_text_encoder(tmp_path / "theirs")(ids, mask).context, expected)
