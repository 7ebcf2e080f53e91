"""Complete evaluations of tiny models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blots import SIDE, Blots, blot_features
from tiny_pipelines import bert, of_classes, unconditional, vq

from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate, image_side
from ldm.evaluation.plan import Plan
from ldm.evaluation.samples import request_of
from ldm.generation import Request, TextToImage

FEW_STEPS = Request(num_inference_steps=2, seed=5)


def plan(*metrics: str, **options: object) -> Plan:
    given = {"samples": 12, "batch_size": 5}
    return Plan(metrics=metrics, **given | options)


def test_the_use_of_a_codebook_is_over_all_positions_of_all_images() -> None:
    autoencoder, source = vq(), Blots()
    with torch.inference_mode():
        latents = autoencoder.encode(to_tensor(source.images)).mode()
        counts = torch.bincount(autoencoder.indices(latents).flatten(), minlength=32).double()
    frequencies = counts[counts > 0] / counts.sum()
    found = evaluate(autoencoder, source, plan("codebook", "psnr")).results
    assert found["codebook_usage"] == len(frequencies) / 32
    assert 0 < found["codebook_usage"] < 1
    expected = (-(frequencies * frequencies.log()).sum()).exp().item()
    assert found["codebook_perplexity"] == pytest.approx(expected, rel=1e-9)


def test_an_autoencoder_has_the_same_results_alone_and_in_its_pipeline() -> None:
    pipe, source, asked = TextToImage(bert()), Blots(), plan("psnr", "ssim", "rfid")
    assert image_side(pipe) == image_side(pipe.pipeline.autoencoder) == SIDE
    whole, alone = (
        evaluate(model, source, asked, features=blot_features()) for model in (pipe, pipe.pipeline.autoencoder)
    )
    assert whole.results == alone.results
    assert "sampling" not in alone.settings
    with pytest.raises(UserError, match="generates no samples"):
        evaluate(pipe.pipeline.autoencoder, source, plan("fid"), features=blot_features())
    with pytest.raises(UserError, match="has no codebook"):
        evaluate(pipe.pipeline.autoencoder, source, plan("codebook"))


def test_images_are_decoded_once_for_all_metrics() -> None:
    source = Blots()
    evaluate(vq(), source, plan("psnr", "rfid", "codebook", samples=9, images=12), features=blot_features())
    assert source.taken == 12


def test_statistics_are_written_and_then_used_instead_of_the_images(tmp_path: Path) -> None:
    pipe, source, features = TextToImage(bert()), Blots(), blot_features()
    asked = plan("fid", "kid", "precision", sampling=FEW_STEPS)
    kept = replace(asked, statistics=tmp_path / "blots.safetensors")
    without = evaluate(pipe, source, asked, features=features)
    made = evaluate(pipe, source, kept, features=features)
    source.taken = 0
    used = evaluate(pipe, source, kept, features=features)
    assert source.taken == 0
    assert without.results == made.results == used.results
    assert [report.settings["statistics_reused"] for report in (without, made, used)] == [False, False, True]
    assert len(used.settings["notes"]) == 1  # 12 images in 6 dimensions are enough
    assert used.settings["statistics"] == str(kept.statistics)


def test_statistics_of_other_images_or_networks_raise_an_error_that_names_the_difference(tmp_path: Path) -> None:
    kept = plan("rfid", statistics=tmp_path / "blots.safetensors")
    evaluate(vq(), Blots(), kept, features=blot_features())
    wide = vq()
    wide.config = wide.config.model_copy(update={"sample_size": 64})
    for autoencoder, source, asked, features, words in (
        (vq(), Blots(seed=1), kept, blot_features(), "data "),
        (vq(), Blots(), replace(kept, images=11), blot_features(), "images 12, not 11"),
        (wide, Blots(), kept, blot_features(), "size 32, not 64"),
        (vq(), Blots(), kept, blot_features(1), "features blot-0, not blot-1; weights "),
    ):
        with pytest.raises(UserError, match=words) as error:
            evaluate(autoencoder, source, asked, features=features)
        assert "\n" not in str(error.value)
    whole = kept.statistics.read_bytes()
    for content in (whole[:-8], b"", b"not a safetensors file"):
        kept.statistics.write_bytes(content)
        with pytest.raises(UserError, match="remove it"):
            evaluate(vq(), Blots(), kept, features=blot_features())


def test_each_kind_of_model_generates_from_its_conditions_and_the_report_has_the_settings() -> None:
    source = Blots(4)
    asked = plan("fid", samples=4, sampling=FEW_STEPS)
    for pipeline, subjects, scale in (
        (bert(), [f"a dog {number}" for number in range(4)], 3.0),
        (unconditional(), [None] * 4, 1.0),
        (of_classes(), [0, 1, 2, 3], 1.0),
    ):
        pipe = TextToImage(pipeline)
        assert request_of(pipe, source, asked).images == list(zip(subjects, range(5, 9), strict=True))
        report = evaluate(pipe, source, asked, features=blot_features())
        levels = {"quality": "exact", "num_inference_steps": 2, "sampler": "ddim", "eta": 0.0}
        assert report.settings["sampling"] == {"guidance_scale": scale, **levels, "seed": 5}
        ours, few = report.settings["notes"]
        assert "features blot-0: compare only with numbers of the same features" in ours
        assert few.startswith("4 images in 6 dimensions have a singular covariance")
        assert np.isfinite(report.results["fid"])


def test_a_clip_score_needs_a_model_conditioned_on_text() -> None:
    for parts in (unconditional(), of_classes()):
        with pytest.raises(UserError, match="not conditioned on text"):
            evaluate(TextToImage(parts), Blots(4), plan("clip", samples=4, clip="somewhere"))


def test_neighbours_are_searched_in_all_images_of_the_data() -> None:
    pipe, source = TextToImage(bert()), Blots(12)
    asked = plan("neighbours", samples=2, images=12, sampling=FEW_STEPS)
    sheet = evaluate(pipe, source, asked, features=blot_features()).neighbours
    assert sheet is not None
    assert sheet.size == (7 * SIDE + 6 * 2, 2 * SIDE + 2)
    shown = np.asarray(sheet)[:SIDE, SIDE + 2 : 2 * SIDE + 2]  # beside the first sample
    assert any(np.array_equal(shown, image) for image in source.images)


def test_options_that_no_metric_uses_raise_an_error() -> None:
    for options, words in (
        ({"sampling": FEW_STEPS}, "--steps"),
        ({"features": "inception"}, "--features inception is not used by psnr"),
        ({"images": 20}, "--images 20"),
        ({"statistics": Path("x.safetensors")}, "--statistics x"),
        ({"samples": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=words):
            plan("psnr", **options)
    with pytest.raises(UserError, match="is not a folder"):
        plan("fid", statistics=Path("nowhere/x.safetensors"))
    with pytest.raises(UserError, match="the metrics need 20 images, but the data has 12"):
        evaluate(vq(), Blots(), plan("psnr", samples=20))
