"""The whole path through the real command line."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import SMALL, Command

from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.storage.store import load_tensors


def losses(run: Path) -> list[float]:
    reports = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [facts["loss"] for facts in reports if "loss" in facts]


def test_help_is_instant_and_does_without_torch(interpreter: Command) -> None:
    began = os.times()
    done = interpreter("--help")
    ended = os.times()
    assert "train-unet" in done.stdout
    # Of the processor, since other tests run beside it.
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 0.4
    code = "import sys, ldm.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_group_without_a_command_shows_its_commands(ldm: Command) -> None:
    for group, command in (([], "train-vae"), (["data"], "scenes")):
        done = ldm(*group, check=False)
        assert done.returncode == 2
        assert command in done.stdout
        assert not done.stderr


def test_every_command_explains_itself(ldm: Command) -> None:
    for command in (["generate"], ["train-vae"], ["train-unet"], ["data", "scenes"]):
        assert "--seed" in re.sub(r"\x1b\[[0-9;]*m", "", ldm(*command, "--help").stdout)


def cpu_seconds() -> float:
    """What the processes that this one started, and that have ended, have had of the cores."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_from_scratch_to_a_pipeline_in_under_three_minutes(interpreter: Command, tmp_path: Path) -> None:
    began = cpu_seconds()
    vae, unet = tmp_path / "vae", tmp_path / "unet"
    interpreter("train-vae", "tiny", "--data", "scenes", "--out", vae)
    interpreter("train-unet", "tiny", "--data", "scenes", "--vae", vae, "--out", unet)
    assert cpu_seconds() - began < 2 * 180  # of two cores, which other tests use besides
    for run, fall in ((vae, 0.5), (unet, 0.8)):
        course = losses(run)
        assert np.mean(course[-5:]) < fall * course[0], course
    assert load_pipeline(unet).autoencoder.config.scaling_factor is not None
    out = tmp_path / "dog.png"
    interpreter("generate", "a dog", "--model", unet, "--steps", 5, "--out", out)
    assert Image.open(out).size == (32, 32)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_weights_and_a_resumed_run_ends_with_them(
    ldm: Command, tiny_vae: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    for name, part, reference, extra in (
        ("vae", "autoencoder", tiny_vae, ()),
        ("unet", "unet", tiny_pipeline, ("--vae", tiny_vae)),
    ):
        run, stopped = tmp_path / name, tmp_path / f"{name}-stopped"
        every = ("--set", f"training.{part}.log_every=1")
        options = (f"train-{name}", "tiny", "--data", "scenes", *extra, *SMALL, "--max-steps", 4, *every)
        ldm(*options, "--out", run, "--save-every", 2)
        # A run that was stopped after its save at step 2.
        stopped.mkdir()
        (run / "step-000002").rename(stopped / "step-000002")
        (stopped / "log.jsonl").write_text((run / "log.jsonl").read_text())
        ldm(*options, "--out", stopped, "--resume")
        assert losses(stopped) == losses(run)
        for end in (run, stopped):
            for path in sorted(reference.glob("step-000004/**/*.safetensors")):
                ours = load_tensors(end / path.relative_to(reference))
                for key, tensor in load_tensors(path).items():
                    assert torch.equal(ours[key], tensor), f"{path} {key}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "vq", "unet"])
def test_two_processes_have_the_losses_of_one(
    ldm: Command, interpreter: Command, tiny_vae: Path, tmp_path: Path, kind: str
) -> None:
    stage = "unet" if kind == "unet" else "vae"
    part = "autoencoder" if stage == "vae" else "unet"
    steps = 20 if kind == "vq" else 50  # a codebook begins in 3 and has windows of 6
    options = ["--data", "scenes", "--max-steps", steps, *SMALL, "--set", f"training.{part}.log_every=1"]
    options += ["--vae", tiny_vae] if stage == "unet" else []
    options += ["--set", "loss.equivariance.weight=0.25"] if kind == "vae" else []
    vq = (
        "autoencoder.kind=vq",
        "autoencoder.codebook_size=16",
        "loss.codebook.window=6",
        "loss.codebook.start_steps=3",
    )
    options += [word for option in vq for word in ("--set", option)] if kind == "vq" else []
    alone, together = tmp_path / "one", tmp_path / "two"
    ldm(f"train-{stage}", "tiny", *options, "--out", alone)
    torchrun = interpreter if kind == "unet" else ldm  # once as a person would start it
    done = torchrun(f"train-{stage}", "tiny", *options, "--out", together, processes=2)
    assert "2 processes" in done.stderr
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_processes_divide_the_images_among_them(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = ["a dog", "a cat", "a red apple"]
    options = ["--model", str(tiny_pipeline), "--steps", "2", "--seed", "5"]
    for extra in ((), ("--grid",)):
        alone, together = tmp_path / f"one{len(extra)}", tmp_path / f"two{len(extra)}"
        ldm("generate", *prompts, *options, *extra, "--out", alone)
        ldm("generate", *prompts, *options, *extra, "--out", together, processes=2)
        names = sorted(path.name for path in alone.iterdir())
        assert len(names) == (1 if extra else 3)
        assert sorted(path.name for path in together.iterdir()) == names
        for name in names:
            ours, theirs = (np.asarray(Image.open(folder / name)).astype(int) for folder in (together, alone))
            assert abs(ours - theirs).max() <= 1, name  # batches differ, and with them the last bit


def test_an_autoencoder_without_latent_statistics_raises_an_error(ldm: Command, tiny_vae: Path, tmp_path: Path) -> None:
    autoencoder = Autoencoder.from_pretrained(tiny_vae / "vae")
    autoencoder.config = autoencoder.config.model_copy(update={"scaling_factor": None, "shift_factor": None})
    autoencoder.save_pretrained(tmp_path / "vae")
    options = ("--data", "scenes", "--vae", tmp_path / "vae", "--out", tmp_path / "run", *SMALL)
    done = ldm("train-unet", "tiny", *options, check=False)
    assert done.returncode == 2
    assert "no latent statistics" in done.stderr


@pytest.mark.slow
def test_training_starts_from_a_trained_model(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    options = ("--data", "scenes", "--init", tiny_pipeline, *SMALL, "--set", "training.unet.learning_rate=0")
    ldm("train-unet", "tiny", *options, "--out", tmp_path / "more", "--max-steps", 1)
    for part in ("vae", "unet", "text_encoder"):
        [before], [after] = (list((run / part).glob("*.safetensors")) for run in (tiny_pipeline, tmp_path / "more"))
        given, kept = load_tensors(before), load_tensors(after)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in given.items())
    done = ldm("train-unet", "tiny", *options, "--set", "unet.layers_per_block=3", "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "unet.layers_per_block is 1, not 3" in done.stderr


@pytest.mark.slow
def test_an_autoencoder_starts_from_a_trained_one(ldm: Command, tiny_vae: Path, tmp_path: Path) -> None:
    options = ("--data", "scenes", "--init", tiny_vae, *SMALL, "--set", "training.autoencoder.learning_rate=0")
    ldm("train-vae", "tiny", *options, "--out", tmp_path / "more", "--max-steps", 1)
    [before], [after] = (list((run / "vae").glob("*.safetensors")) for run in (tiny_vae, tmp_path / "more"))
    given, kept = load_tensors(before), load_tensors(after)
    # The statistics, measured again, are folded into these two.
    inner = [name for name in given if not name.startswith(("quant_conv", "post_quant_conv"))]
    assert all(torch.equal(given[name], kept[name]) for name in inner)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        networks = [Autoencoder.from_pretrained(run / "vae") for run in (tiny_vae, tmp_path / "more")]
        copies = [network.decode(network.encode(images).mode()) for network in networks]
    torch.testing.assert_close(copies[1], copies[0], rtol=1e-4, atol=1e-4)
    other = ("--set", "autoencoder.layers_per_block=2", "--out", tmp_path / "x")
    done = ldm("train-vae", "tiny", *options, *other, check=False)
    assert done.returncode == 2
    assert "autoencoder.layers_per_block is 1, not 2" in done.stderr


@pytest.mark.slow
def test_an_autoencoder_that_contradicts_the_configuration_or_the_run_raises_an_error(
    ldm: Command, tiny_vae: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = ("--data", "scenes", "--vae", tiny_vae, *SMALL, "--set", "autoencoder.layers_per_block=2")
    done = ldm("train-unet", "tiny", *options, "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "autoencoder.layers_per_block is 1, not 2" in done.stderr
    other = tmp_path / "vae"
    autoencoder = Autoencoder.from_pretrained(tiny_vae / "vae")
    with torch.no_grad():
        autoencoder.post_quant_conv.bias += 1
    autoencoder.save_pretrained(other)
    run = shutil.copytree(tiny_pipeline, tmp_path / "run")
    done = ldm("train-unet", "tiny", "--data", "scenes", *SMALL, "--vae", other, "--out", run, "--resume", check=False)
    assert done.returncode == 2
    assert "another autoencoder" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_no_files(ldm: Command, tmp_path: Path) -> None:
    options = ("train-unet", "tiny", "--data", "scenes", "--out", tmp_path / "run")
    done = ldm(*options, "--dry-run", "--gpus", 8, "--gpu", "h100")
    for text in ("400 of 32 images", "time on 8 h100", "memory of activations", "not tried: --vae or --init"):
        assert text in done.stdout
    assert not (tmp_path / "run").exists()
    failed = ldm(*options, "--gpus", 8, check=False)
    assert failed.returncode == 2
    assert "need --dry-run" in failed.stderr


@pytest.mark.slow
def test_a_dry_run_tries_a_few_steps(ldm: Command, tiny_vae: Path, tmp_path: Path, cache: Path) -> None:
    before = sorted(cache.rglob("*")), sorted(tiny_vae.rglob("*"))
    for stage, extra in (("vae", ()), ("unet", ("--vae", tiny_vae))):
        out = ("--out", tmp_path / "run")
        done = ldm(f"train-{stage}", "tiny", "--data", "scenes", *extra, *out, "--dry-run", *SMALL)
        assert re.search(r"time here +about [\d.,]+ \w+, [\d.]+ s a step on \w+, tried for \d steps", done.stdout)
    assert not list(tmp_path.iterdir())
    assert (sorted(cache.rglob("*")), sorted(tiny_vae.rglob("*"))) == before
