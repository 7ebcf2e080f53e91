"""Training a U-Net conditioned on the embedding of its target image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm import config
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.conditioning.image.encoders import CLIPImageConfig, make_image_encoder
from ldm.conditioning.image.files import save_image_encoder
from ldm.config.root import Config
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.sources import IndexedSource
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.training.cost import step_cost
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

OWN = ("text=null", "image.kind=own", "image.channels=[8, 16]", "image.tokens=2", "image.hidden_size=64")


class Colours(IndexedSource):
    """Flat images, each of a colour of its own."""

    def __len__(self) -> int:
        return 12

    def image(self, index: int) -> np.ndarray:
        return np.full((32, 32, 3), (20 * index, 255 - 20 * index, 128), dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [f"colour number {index}"]

    def stamp(self, index: int) -> str:
        return str(index)


def settings(*overrides: str) -> Config:
    return config.load("tiny", ["training.unet.batch_size=8", "training.unet.sample_prompts=[]", *overrides])


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    autoencoder = Autoencoder(settings().autoencoder.model_copy(update={"scaling_factor": 1.0}))
    path = tmp_path_factory.mktemp("first") / "vae"
    autoencoder.save_pretrained(path)
    return path


def stage(vae: Path, run: Path, *overrides: str, init: str | None = None) -> UNetStage:
    torch.manual_seed(0)
    asked, place = settings(*overrides), Run(run, resume=True)
    UNetStage.check(asked, place, StartingPoint(vae=str(vae), init=init))
    return UNetStage.build(
        asked, Colours(), Accelerator(cpu=True), place, StartingPoint(vae=None if init else str(vae), init=init)
    )


def batch(step: int, images: bool = True) -> Batch:
    return TrainingData(Colours(), settings().data, BatchShare(8), 0, images)[step, 0]


def test_the_encoder_is_trained_with_the_unet_and_saved_with_it(vae: Path, tmp_path: Path) -> None:
    trained = stage(vae, tmp_path / "run", *OWN)
    encoder = trained.pipeline.modules["image_encoder"]
    before = [weight.detach().clone() for weight in encoder.parameters()]
    for step in (1, 2, 3):  # zeros at the output, then at the ends of the residual branches, come to life first
        trained.train_step([batch(step)], step)
    moved = [not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True)]
    assert all(moved)
    trained.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["image_encoder"] == [
        "ldm",
        "ImageEncoder",
    ]
    back, average = (each.modules["image_encoder"] for each in (load_pipeline(tmp_path / "saved"), trained.average))
    assert all(torch.equal(average.state_dict()[name], weight) for name, weight in back.state_dict().items())
    goes_on = stage(vae, tmp_path / "run", *OWN, init=str(tmp_path / "saved"))
    assert torch.equal(goes_on.pipeline.modules["image_encoder"].conv_in.weight, back.conv_in.weight)
    [image] = TextToImage.from_pretrained(tmp_path / "saved", device="cpu")(
        image=Image.fromarray(Colours().image(3)), num_inference_steps=2
    )
    assert image.size == (32, 32)


def test_cached_latents_give_the_same_conditions(vae: Path, tmp_path: Path) -> None:
    cached = stage(vae, tmp_path / "cached", *OWN, "training.unet.cache_latents=true")
    encoding = stage(vae, tmp_path / "encoding", *OWN, "training.unet.cache_latents=false")
    for step in (1, 2):
        quick = cached.train_step([batch(step, images=False)], step).losses["loss"]
        assert quick.item() == pytest.approx(encoding.train_step([batch(step)], step).losses["loss"].item(), rel=1e-5)


def test_dropped_embeddings_are_zeros_as_in_guidance(vae: Path, tmp_path: Path) -> None:
    one = stage(vae, tmp_path / "run", *OWN, "training.unet.condition_dropout=0.5")
    [condition] = one.conditionings
    function = condition.conditioning_fn(one.context.config)
    network = one.emas[0].network
    with torch.no_grad():
        shares = []
        for step in range(1, 9):
            given, kept = condition.training_inputs(batch(step), one.context)
            context = function(network, given, kept)[0]["context"]
            assert torch.equal((context != 0).any(dim=2).any(dim=1), kept.flatten())
            torch.testing.assert_close(context[kept.flatten()], network.image_encoder(given)[kept.flatten()])
            shares.append(kept.float().mean())
        posterior = one.pipeline.autoencoder.encode(batch(8).images)
    assert torch.equal(given, posterior.mode())
    assert torch.stack(shares).mean().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_conditioning_on_the_image_lowers_the_loss(tmp_path: Path) -> None:
    built_in = ("autoencoder.block_out_channels=[32, 64, 128]", "training.unet.learning_rate=2e-3")
    one = stage(Path("emoji"), tmp_path / "run", *OWN, *built_in, "training.unet.condition_dropout=0.2")
    for step in range(1, 151):
        one.train_step([batch(step)], step)
    losses = {}
    for share in (0.0, 1.0):
        asked = settings(*OWN, *built_in, f"training.unet.condition_dropout={share}")
        one.context = replace(one.context, config=asked)
        losses[share] = torch.stack([one.validate(batch(step)).losses.mean() for step in range(200, 208)]).mean().item()
    assert losses[0.0] < 0.8 * losses[1.0]


def test_a_frozen_clip_of_a_source_is_used_and_not_trained(vae: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 64}
    clip = make_image_encoder(CLIPImageConfig(image_size=16, patch_size=8, **sizes))
    torch.nn.init.normal_(clip.visual_projection.weight)
    save_image_encoder(clip, tmp_path / "clip")
    words = ("text=null", "image.kind=clip", f"image.source={tmp_path / 'clip'}", "image.projection_dim=64")
    one = stage(vae, tmp_path / "run", *words, "training.unet.cache_latents=false")
    assert one.needs_images
    one.train_step([batch(1)], 1)
    found = one.average.modules["image_encoder"].state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in clip.state_dict().items())
    one.save(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionImageVariationPipeline"


def test_a_model_of_text_is_a_beginning(vae: Path, tmp_path: Path) -> None:
    stage(vae, tmp_path / "text").save(tmp_path / "text" / "saved")
    one = stage(vae, tmp_path / "run", *OWN, init=str(tmp_path / "text" / "saved"))
    assert one.average.modules.keys() == {"autoencoder", "unet", "image_encoder"}


def test_the_cost_of_a_step_counts_the_encoder() -> None:
    cost = step_cost("unet", settings(*OWN))
    encoder = make_image_encoder(settings(*OWN).image)
    assert cost.parameters["image encoder"] == sum(weight.numel() for weight in encoder.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["image.kind=own", "image.hidden_size=64"], "text and image each give the denoiser a context"),
        (["text=null", "image.kind=own", "image.hidden_size=32"], r"image\.hidden_size \(32\)"),
        ([*OWN, "image.in_channels=3"], r"image\.in_channels is 3, but autoencoder\.latent_channels is 4"),
        ([*OWN, "image.frozen=true"], r"image\.frozen without image\.source"),
        ([*OWN, "training.unet.sample_images=2"], "sample_image and sample_images belong together"),
        ([*OWN, "training.unet.sample_images=2", "training.unet.sample_image=no.png"], r"no\.png"),
        (
            [*OWN, "training.unet.text_learning_rate=0.1"],
            "text_learning_rate is set, but .* conditioning image",
        ),
        (["text=null", "image.kind=clip", "image.projection_dim=64"], "set training.unet.cache_latents to false"),
    ],
)
def test_invalid_combinations_raise_an_error(options: list[str], message: str, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        stage(vae, tmp_path, *options)
