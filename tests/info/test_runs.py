"""`ldm info` says whether a pipeline generates, and if not why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import random_pipeline

from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.errors import UserError
from ldm.info.describe import describe
from ldm.info.report import report
from ldm.info.text import as_text


def test_a_sound_pipeline_generates(tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path)
    facts = report(describe(str(tmp_path)))
    assert facts["generates"] == "yes"
    assert "generates  " in as_text(facts)


def test_an_unsupported_pipeline_says_why_in_the_words_of_generate(tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError) as error:
        load_pipeline(tmp_path)
    facts = report(describe(str(tmp_path)))
    assert facts["generates"] == str(error.value)
    assert f"no: {error.value}" in as_text(facts)
