"""Class-conditional and unconditional U-Nets on latents and pixels: training, saving, resuming, sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_pipelines import speaking
from tiny_stages import NAMES, Colours, Kinds, changed, weights

from ldm import config
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.conditioning.classes import ClassConditioning
from ldm.config.root import Config
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.errors import UserError
from ldm.evaluation.plan import Plan
from ldm.evaluation.samples import request_of
from ldm.generation import TextToImage
from ldm.training.plan import plan
from ldm.training.runs.run import Run
from ldm.training.stages.initialize import start_from
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

SMALL = ("training.unet.batch_size=8", "training.unet.sample_prompts=[]", "training.unet.sample_steps=2", "text=null")
PLAIN = ("unet.attention=plain", "unet.cross_attention_dim=null")
NOTHING = (*SMALL, *PLAIN, "training.unet.sample_images=3")
NAMED = ("training.unet.sample_classes=[dog, 1]",)
TOKEN = (*SMALL, *NAMED, "classes={num_classes: 5, hidden_size: 64}")
TABLE = (*SMALL, *NAMED, *PLAIN, "unet.num_class_embeds=5")
CHANNELS = ("unet.in_channels=3", "unet.out_channels=3", "diffusion={}")
PIXELS = (*NOTHING, *CHANNELS, "autoencoder={kind: identity, latent_channels: 3}", "training.unet.cache_latents=false")
TASKS = {"nothing": NOTHING, "token": TOKEN, "table": TABLE, "pixels": PIXELS}


def settings(kind: str, *overrides: str) -> Config:
    asked = [*TASKS[kind], *overrides]
    if "autoencoder={kind: identity, latent_channels: 3}" in asked:  # whose section is a whole new one
        asked = [*asked, "loss.kl={}"]
    return config.load("tiny", asked)


def make(kind: str, run: Path, vae: str | None, *overrides: str, init: str | None = None) -> UNetStage:
    torch.manual_seed(0)
    asked, folder = settings(kind, *overrides), Run(run, resume=True)
    given = None if kind == "pixels" else vae
    UNetStage.check(asked, folder, StartingPoint(vae=given, init=init))
    return UNetStage.build(asked, Kinds(), Accelerator(cpu=True), folder, StartingPoint(vae=given, init=init))


def batches(stage: UNetStage, kind: str, step: int, source: Colours | None = None) -> list[Batch]:
    asked = settings(kind)
    needs, uses_labels = stage.needs_images, asked.uses_labels
    return [TrainingData(source or Kinds(), asked.data, BatchShare(8), 0, needs, classes=uses_labels)[step, 0]]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_trains_saves_resumes_and_generates(vae: str, tmp_path: Path, kind: str) -> None:
    stage, before = make(kind, tmp_path, vae), []
    before = weights(stage, "unet")
    for step in (1, 2):
        stage.begin(step)
        assert stage.train_step(batches(stage, kind, step), step).losses["loss"].isfinite()
    assert changed(before, weights(stage, "unet"))
    assert stage.validate(batches(stage, kind, 0)[0]).losses.mean().isfinite()
    sheet = stage.sample()
    assert sheet is not None
    assert min(sheet.size) >= 32
    asked = settings(kind)
    run = Run(tmp_path, resume=True)
    run.save(2, stage.save, stage.state(), asked)
    went_on = make(kind, tmp_path, None)
    saved = run.load_state()
    assert saved is not None
    went_on.load_state(saved.state)
    for each in (stage, went_on):
        each.begin(3)
    ours, theirs = (each.train_step(batches(each, kind, 3), 3).losses["loss"] for each in (stage, went_on))
    assert torch.equal(ours, theirs)
    pipe = TextToImage.from_pretrained(tmp_path, device="cpu")
    inputs = {"classes": ["dog", 1]} if asked.uses_labels else {"num_images": 2}
    assert [image.size for image in pipe(num_inference_steps=2, **inputs)] == [(32, 32)] * 2
    assert pipe.pipeline.class_names == (NAMES if asked.uses_labels else ())
    [conditioning] = pipe.pipeline.conditionings.values()
    assert getattr(conditioning, "empty", None) == (4 if asked.uses_labels else None)
    assert "not tried" in plan("unet", asked, "scenes")


@pytest.mark.parametrize("kind", ["token", "table"])
def test_a_share_of_the_classes_is_the_empty_one_which_guidance_goes_away_from(
    vae: str, tmp_path: Path, kind: str
) -> None:
    stage = make(kind, tmp_path, vae, "training.unet.condition_dropout=0.5")
    [condition] = stage.conditionings
    assert isinstance(condition, ClassConditioning)
    given = [condition.training_inputs(batches(stage, kind, step)[0], stage.context) for step in range(1, 41)]
    found = torch.cat([labels for [labels] in given]).tolist()
    assert found.count(4) / len(found) == pytest.approx(0.5, abs=4 * (0.25 / len(found)) ** 0.5)
    assert set(found) == {0, 1, 2, 3, 4}
    speaking(stage.average.denoiser)
    pipe = TextToImage(stage.average)
    [guided] = pipe(classes="dog", num_inference_steps=2)  # 3, as where there is text
    [asked] = pipe(classes=3, negative_class=4, guidance_scale=3, num_inference_steps=2)
    [alone] = pipe(classes=3, guidance_scale=1, num_inference_steps=2)
    assert np.array_equal(guided, asked)
    assert not np.array_equal(guided, alone)
    with pytest.raises(UserError, match=r"class dgo: this model has classes 0 to 4; did you mean 'dog'"):
        pipe(classes="dgo")


def test_classes_that_do_not_fit_raise_a_one_line_error(vae: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4 classes: set classes.num_classes to 5, one of which stands for no class"):
        make("token", tmp_path / "a", vae, "classes.num_classes=4")
    with pytest.raises(UserError, match=r"set classes.num_classes to 4, not 5"):
        make("token", tmp_path / "b", vae, "training.unet.condition_dropout=0")
    with pytest.raises(UserError, match=r"sample_prompts is set, but .* conditioning unconditional does not use it"):
        make("nothing", tmp_path / "c", vae, "training.unet.sample_prompts=[a dog]")
    with pytest.raises(UserError, match=r"condition_dropout is set, but a model with conditioning unconditional"):
        make("pixels", tmp_path / "d", vae, "training.unet.condition_dropout=0.2")
    with pytest.raises(UserError, match=r"cache_latents=false"):
        make("pixels", tmp_path / "e", vae, "training.unet.cache_latents=true")

    class Beyond(Kinds):
        def label(self, index: int) -> int:
            return 7

    stage = make("token", tmp_path / "f", vae)
    with pytest.raises(UserError, match=r"has class 7, but classes.num_classes is 5, which allows up to 3"):
        stage.train_step(batches(stage, "token", 1, Beyond()), 1)


def test_a_run_keeps_its_classes(vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make("token", tmp_path, vae)
    Run(tmp_path, resume=True).save(1, stage.save, stage.state(), settings("token"))
    with pytest.raises(UserError, match=r"condition_dropout is 0, but the run has an empty class: keep it"):
        make("token", tmp_path, None, "training.unet.condition_dropout=0")
    monkeypatch.setattr(Kinds, "class_names", ("ant", "bee", "cow", "eel"))
    with pytest.raises(UserError, match=r"the classes of the data differ from those of .*: eel"):
        make("token", tmp_path, None)


def test_what_fits_of_a_model_is_taken_over_and_a_line_says_what_is_new(
    vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.load("tiny", ["training.unet.batch_size=8"])
    torch.manual_seed(1)
    first = UNetStage.build(
        text, Kinds(), Accelerator(cpu=True), Run(tmp_path / "text", resume=True), StartingPoint(vae=vae)
    )
    for weight in first.average.denoiser.conv_out.parameters():
        torch.nn.init.normal_(weight)
    first.save(tmp_path / "saved")
    given = load_pipeline(tmp_path / "saved").denoiser.state_dict()
    token = make("token", tmp_path / "token", None, init=str(tmp_path / "saved"))
    ours = token.pipeline.denoiser.state_dict()
    assert ours.keys() == given.keys()
    assert all(torch.equal(weight, ours[name]) for name, weight in given.items())
    assert "start new" not in capsys.readouterr().err
    plain = make("nothing", tmp_path / "plain", None, init=str(tmp_path / "saved"))
    ours = plain.pipeline.denoiser.state_dict()
    shared = [name for name in ours if name in given]
    assert all(torch.equal(given[name], ours[name]) for name in shared)
    new = len(ours) - len(shared)
    assert f"{len(shared)} of the {len(ours)} tensors of the U-Net are those of" in (said := capsys.readouterr().err)
    assert f"{new} start new, such as " in said
    with pytest.raises(UserError, match=r"unet.layers_per_block is 1, not 3"):
        make("nothing", tmp_path / "deep", None, "unet.layers_per_block=3", init=str(tmp_path / "saved"))


def test_new_input_channels_have_no_effect_at_first(vae: str, tmp_path: Path) -> None:
    given = make("nothing", tmp_path, vae).pipeline.denoiser
    for weight in given.conv_out.parameters():
        torch.nn.init.normal_(weight)
    wider = type(given)(given.config.model_copy(update={"in_channels": 7, "out_channels": 8}))
    start_from(wider, given, "it", Accelerator(cpu=True))
    x, beside, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        mean, variance = wider(torch.cat([x, beside], dim=1), t).chunk(2, dim=1)
        torch.testing.assert_close(mean, given(x, t), rtol=1e-5, atol=1e-5)
    assert not variance.any()


def test_on_pixels_the_learned_variance_has_the_decoder_of_256_values(vae: str, tmp_path: Path) -> None:
    learned = ("diffusion={learned_variance: true, schedule: {set_alpha_to_one: true}}", "unet.out_channels=6")
    stage = make("pixels", tmp_path, None, *learned)
    assert stage.variance_loss is not None
    assert stage.variance_loss.decoder == "discretised"
    assert stage.train_step(batches(stage, "pixels", 1), 1).losses["loss"].isfinite()
    stage.save(tmp_path / "saved")
    assert load_pipeline(tmp_path / "saved").autoencoder.config.kind == "identity"
    latent = make("nothing", tmp_path / "latent", vae, "diffusion.learned_variance=true", "unet.out_channels=8")
    assert latent.variance_loss is not None
    assert latent.variance_loss.decoder == "gaussian"


def test_a_model_is_evaluated_with_its_conditions(vae: str, tmp_path: Path) -> None:
    pipes = {kind: TextToImage(make(kind, tmp_path / kind, vae).average) for kind in TASKS}
    asked = {kind: request_of(pipe, Kinds(), PLAN) for kind, pipe in pipes.items()}
    for kind in ("nothing", "pixels"):
        assert (asked[kind].num_images, asked[kind].subjects) == (5, (None,))
    for kind in ("token", "table"):
        assert [pipes[kind].pipeline.class_names[row] for row in asked[kind].classes] == [
            "ant",
            "bee",
            "cow",
            "dog",
            "ant",
        ]
        assert asked[kind].guidance_scale == 3.0


PLAN = Plan(metrics=("psnr",), samples=5)
