"""A pipeline we wrote is one of diffusers', without a word of complaint; its parts give the same numbers there."""

from __future__ import annotations

import logging
from pathlib import Path

import diffusers
import pytest
import torch

from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

CAPTIONS = ["a dog playing a trumpet", "three blue cats"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS, 100, 12)
    text = BertConfig(max_length=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    autoencoder = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16)
    unet = UNet(
        UNetConfig(
            block_out_channels=(8, 16),
            attention_layers=(0, 1),
            num_attention_heads=2,
            norm_num_groups=4,
            cross_attention_dim=16,
            sample_size=8,
        )
    )
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.1)
    diffusion = DiffusionConfig(prediction="v", schedule=schedule_config(zero_terminal_snr=True, spacing="trailing"))
    conditioning = TextConditioning([(BertTextEncoder(text, tokenizer.vocab_size), tokenizer)])
    pipeline = Pipeline(Autoencoder(autoencoder), unet, diffusion, {"text": conditioning})
    pipeline.autoencoder.set_statistics(torch.tensor([1.0, 0.0, -2.0, 0.3]), torch.tensor([0.5, 2.0, 1.0, 3.0]))
    return pipeline


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(pipeline, folder)
    return folder


@pytest.mark.slow
def test_a_pipeline_in_half_precision_and_shards_is_one_of_diffusers(pipeline: Pipeline, tmp_path: Path) -> None:
    TextToImage(pipeline).save_pretrained(tmp_path, torch.float16, max_shard_size=20_000)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    assert all(file.stat().st_size < 25_000 for file in files)  # with their headers
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    kept = load_pipeline(tmp_path, torch.float16)
    pairs = ((theirs.unet, "unet"), (theirs.vae, "autoencoder"), (theirs.text_encoder, "text_encoder"))
    for network, name in pairs:
        ours = kept.modules[name]
        tensors = network.state_dict()
        for name, tensor in ours.state_dict().items():
            # Ours is spared of half precision where it asks for that.
            torch.testing.assert_close(tensors[name], tensor.half(), rtol=0, atol=0)


class Complaints(logging.Handler):
    """Keeps what was said at warning level or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.filterwarnings("error::FutureWarning")
def test_diffusers_loads_it_and_generates_without_warnings_about_keys_or_fields(folder: Path) -> None:
    complaints = Complaints()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(complaints)
    try:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    finally:
        for logger in loggers:
            logger.removeHandler(complaints)
    # Its annotation says CLIPTextModel; a BertModel is used all the same.
    assert [m for m in complaints.messages if not m.startswith("Expected types for text_encoder")] == []
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a dog", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 16, 16, 3)
    assert images.std() > 0


def test_its_prompts_latents_outputs_and_images_are_ours(folder: Path, pipeline: Pipeline) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    for network in pipeline.modules.values():
        network.eval()
    [(encoder, tokenizer)] = pipeline.conditionings["text"].encoders
    with torch.no_grad():
        context, empty = pipe.encode_prompt(CAPTIONS[0], torch.device("cpu"), 1, True)
        for made, caption in ((context, CAPTIONS[0]), (empty, "")):
            torch.testing.assert_close(made, encoder(*tokenizer([caption])).context, rtol=1e-5, atol=1e-5)
        latents, t = torch.randn(1, 4, 8, 8), torch.tensor([300])
        output = pipe.unet(latents, t, context).sample
        torch.testing.assert_close(pipeline.denoiser(latents, t, context), output, rtol=1e-5, atol=1e-5)
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        torch.testing.assert_close(pipeline.autoencoder.decode(latents), images, rtol=1e-4, atol=1e-5)


def test_what_diffusers_saves_again_is_ours(folder: Path, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path)
    ours, again = load_pipeline(folder), load_pipeline(tmp_path)
    assert again.autoencoder.config == ours.autoencoder.config
    assert (again.denoiser.config, again.diffusion) == (ours.denoiser.config, ours.diffusion)
    for name in ("autoencoder", "unet", "text_encoder"):
        expected = ours.modules[name].state_dict()
        assert all(torch.equal(w, expected[key]) for key, w in again.modules[name].state_dict().items())
