"""A classifier trained and used through the real command line."""

import json
from pathlib import Path

import pytest
from PIL import Image
from running import Command

TINY = "{num_classes: 20, block_out_channels: [16, 32], attention_levels: [1], norm_num_groups: 8, layers_per_block: 1}"


@pytest.mark.slow
def test_a_classifier_of_scenes_leads_a_model_of_text(
    ldm: Command, tiny_vae: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    config = [f"classifier={TINY}", "unet=null", "text=null", "data.scenes.num=64", "training.classifier.log_every=1"]
    options = ["--batch-size", 8, *(word for option in config for word in ("--set", option))]
    train = ["train-classifier", "tiny", "--data", "scenes", "--out", tmp_path / "run", *options]
    ldm(*train, "--vae", tiny_vae, "--max-steps", 2)
    ldm(*train, "--resume", "--max-steps", 4)
    reports = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [report["step"] for report in reports if "accuracy_t0" in report] == [1, 2, 3, 4]
    draw = ["generate", "a dog", "--model", tiny_pipeline, "--steps", 2, "--classifier", tmp_path / "run", "--class"]
    ldm(*draw, "dog", "--out", tmp_path / "x.png")
    facts = json.loads(Image.open(tmp_path / "x.png").text["ldm"])
    assert facts["class"] == 0  # the number of dogs
    failed = ldm(*draw, "dgo", "--out", tmp_path / "y.png", check=False)
    assert failed.returncode == 2
    assert "did you mean 'dog'?" in failed.stderr
