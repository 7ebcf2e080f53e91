"""U-Nets with an image concatenated to the latents: training and generation use the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_stages import Colours, autoencoder_stage, changed, weights
from torch import nn

from ldm import config
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.config.root import Config
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.masks import free_form_masks
from ldm.errors import UserError
from ldm.generation import Request, TextToImage
from ldm.training.plan import plan
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

SMALL = ("training.unet.batch_size=8", "training.unet.sample_prompts=[]", "training.unet.sample_steps=2")
SHOWN = (*SMALL, "training.unet.sample_images=2")
LAYOUT = (
    *SHOWN,
    "unet.in_channels=7",
    "spatial={kind: segmentation_map, in_channels: 4, stages: 2}",
    "data.map_classes=4",
)
INPAINTING = (*SHOWN, "unet.in_channels=9", "spatial={kind: inpainting, in_channels: 1, channels: 5}")
LARGER = (*SHOWN, "unet.in_channels=7", "spatial={kind: low_resolution}")
TASKS = {"layout": LAYOUT, "inpainting": INPAINTING, "larger": LARGER}
KINDS = {"layout": "LatentDiffusion", "inpainting": "StableDiffusionInpaint", "larger": "LatentDiffusion"}


class Halves(Colours):
    """Images of two colours, and maps that say which is where."""

    class_names = ()

    def image(self, index: int) -> np.ndarray:
        flat = super().image(index)
        flat[:, 4 * (index % 4) + 8 :] = 255 - flat[:, 4 * (index % 4) + 8 :]
        return flat

    def label(self, index: int) -> int:
        return index % 4

    has_maps = True

    def map(self, index: int) -> np.ndarray:
        classes = np.full((32, 32), index % 4, dtype=np.uint8)
        classes[:, 4 * (index % 4) + 8 :] = 3
        return classes


def settings(kind: str, *overrides: str) -> Config:
    return config.load("tiny", [*TASKS[kind], *overrides])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of text alone, which has learnt something: not all of its output is zero."""
    vae, folder = autoencoder_stage(), tmp_path_factory.mktemp("model")
    vae.finish(Colours())
    vae.save(folder / "first")
    torch.manual_seed(0)
    asked, run = config.load("tiny", list(SMALL)), Run(folder / "run", resume=True)
    stage = UNetStage.build(
        asked, Halves(), Accelerator(cpu=True), run, StartingPoint(vae=str(folder / "first" / "vae"))
    )
    for weight in stage.average.denoiser.conv_out.parameters():
        nn.init.normal_(weight)
    stage.save(folder / "text")
    return str(folder / "text")


def make(kind: str, run: Path, model: str, *overrides: str) -> UNetStage:
    torch.manual_seed(0)
    asked, folder = settings(kind, *overrides), Run(run, resume=True)
    init = None if folder.steps() else model
    UNetStage.check(asked, folder, StartingPoint(init=init))
    return UNetStage.build(asked, Halves(), Accelerator(cpu=True), folder, StartingPoint(init=init))


def batch_of(stage: UNetStage, kind: str, step: int) -> Batch:
    return TrainingData(Halves(), settings(kind).data, BatchShare(8), 0, stage.needs_images)[step, 0]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_begins_as_the_model_it_starts_from(model: str, tmp_path: Path, kind: str) -> None:
    stage = make(kind, tmp_path, model)
    batch, given = batch_of(stage, kind, 1), load_pipeline(model)
    noisy, t = torch.randn(8, 4, 8, 8), torch.linspace(0, 999, 8)
    inputs = [each.training_inputs(batch, stage.context) for each in stage.conditionings]
    with torch.no_grad():
        output, _ = stage.networks["unet"].eval()(noisy, t, *inputs)
        ids, mask = inputs[0]
        expected = given.denoiser(noisy, t, given.modules["text_encoder"](ids, mask).context)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_trains_writes_samples_saves_resumes_and_generates(model: str, tmp_path: Path, kind: str) -> None:
    stage = make(kind, tmp_path, model)
    before = weights(stage, "unet")
    beside = stage.networks["unet"].unet.conv_in.weight[:, 4:]
    assert not beside.any()
    for step in (1, 2):
        stage.begin(step)
        assert stage.train_step([batch_of(stage, kind, step)], step).losses["loss"].isfinite()
    assert changed(before, weights(stage, "unet"))
    assert beside.any()  # it is seen from now on
    assert stage.validate(batch_of(stage, kind, 0)).losses.mean().isfinite()
    sheet = stage.sample()
    assert sheet is not None
    assert sheet.size == (6 * 34 - 2, 32)  # condition, sample and the image, of two samples
    run = Run(tmp_path, resume=True)
    run.save(2, stage.save, stage.state(), settings(kind))
    went_on, saved = make(kind, tmp_path, model), run.load_state()
    assert saved is not None
    went_on.load_state(saved.state)
    for each in (stage, went_on):
        each.begin(3)
    ours, theirs = (each.train_step([batch_of(each, kind, 3)], 3).losses["loss"] for each in (stage, went_on))
    assert torch.equal(ours, theirs)
    assert f'"{KINDS[kind]}Pipeline"' in (tmp_path / "step-000002" / "model_index.json").read_text()
    assert "not tried" in plan("unet", settings(kind), "scenes")


@pytest.mark.parametrize("kind", TASKS)
def test_training_and_generation_use_the_same_inputs(model: str, tmp_path: Path, kind: str) -> None:
    """The channels of a batch are those that the pipeline makes of the same images, maps and masks."""
    stage = make(kind, tmp_path, model, "training.unet.cache_latents=false")
    if kind == "layout":
        nn.init.normal_(stage.conditionings[1].modules["spatial"].channel_mapper.weight)
    batch = TrainingData(Halves(), settings(kind).data, BatchShare(4), 0)[1, 0]
    network = stage.networks["unet"].eval()
    with torch.no_grad():
        _, spatial = stage.conditionings
        given, _ = spatial.conditioning_fn(settings(kind))(network, *spatial.training_inputs(batch, stage.context))
        found = given["concat"]
        pipe = TextToImage(stage.pipeline)
        for row, index in enumerate(batch.indices):
            request = Request(prompts=("",), **told_in_drawing(kind, batch, index, row))
            [expected] = spatial.channels(pipe.resolve(request), (32, 32), pipe.pipeline)
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=2e-2 if kind == "larger" else 1e-4)


def told_in_drawing(kind: str, batch: Batch, index: int, row: int) -> dict[str, Image.Image]:
    image = Image.fromarray(Halves().image(index))
    if kind == "layout":
        return {"layout": Image.fromarray(Halves().map(index))}
    if kind == "inpainting":
        from ldm.data.random import StepRandom

        mask = free_form_masks(StepRandom(0), batch.step, batch.slots, (32, 32))[row, 0]
        return {"image": image, "mask": Image.fromarray((255 * mask).byte().numpy())}
    return {"image": image.resize((8, 8), Image.Resampling.BICUBIC)}


def test_images_are_read_beside_cached_latents_where_they_are_needed(model: str, tmp_path: Path) -> None:
    needs = {kind: make(kind, tmp_path / kind, model).needs_images for kind in TASKS}
    assert needs == {"layout": False, "inpainting": True, "larger": True}  # maps are read without their images


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_task_of_classes_shows_them_with_guidance_where_there_is_something_to_guide_away_from(
    model: str, tmp_path: Path, dropout: float
) -> None:
    width = settings("larger").denoiser.cross_attention_dim
    overrides = ("text=null", f"classes={{num_classes: 8, hidden_size: {width}}}")
    overrides += (f"training.unet.condition_dropout={dropout}",)
    sheet = make("larger", tmp_path, model, *overrides).sample()
    assert sheet is not None
    assert sheet.size == (6 * 34 - 2, 32)
    with pytest.raises(UserError, match=r"sample_classes is set, but .* shows samples of the data"):
        make("larger", tmp_path / "named", model, *overrides, "training.unet.sample_classes=[1]")


def test_untrainable_configurations_raise_an_error(model: str, tmp_path: Path) -> None:
    errors = {
        ("layout", "data.map_classes=null"): "needs maps beside the images: set data.map_classes to 4",
        ("inpainting", "training.unet.sample_prompts=[a dog]"): "set training.unet.sample_images instead",
        ("layout", "data.map_classes=3"): "data.map_classes is 3, but spatial.in_channels is 4: they must be equal",
        (
            "inpainting",
            "data.map_classes=3",
        ): "data.map_classes is set, but only the conditioning segmentation_map uses it",
        (
            "inpainting",
            "data.low_res_noise_std=0.1",
        ): "data.low_res_noise_std is set, but only the conditioning low_resolution uses it",
        ("layout", "spatial.stages=1"): "spatial.stages is 1, .*: set spatial.stages to 2",
        ("layout", "spatial.names=[a, b]"): "names has 2 entries, but in_channels is 4: one per class",
    }
    for (kind, option), message in errors.items():
        with pytest.raises(UserError, match=message):
            make(kind, tmp_path, model, option)
