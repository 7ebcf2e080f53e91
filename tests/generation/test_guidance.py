"""What leads an image besides scale and negative prompt: composed prompts, thresholds, classifiers and CLIP."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from tiny_guides import CLIPS, trained_classifier
from tiny_models import CAPTIONS, random_pipeline
from torch import Tensor
from torch.nn import functional as F

from ldm.checkpoint.clips import load_clip
from ldm.cli.generate import generate
from ldm.conditioning.conditions import Conditions
from ldm.errors import UserError, UserNote
from ldm.generation import ClassifierGuidance, ClipGuidance, Composed, Request, SeededNoise, TextToImage, batch_size
from ldm.models.cost import image_memory

DOG, CATS = CAPTIONS[:2]


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(random_pipeline())


@pytest.fixture(scope="module")
def unconditional() -> TextToImage:
    return TextToImage(tiny.unconditional("kl"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: make(folder / name) for name, make in CLIPS.items()}


def draw(pipe: TextToImage, *arguments: Any, **options: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in pipe(*arguments, **{"num_inference_steps": 4} | options)]


def near(images: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.abs(image - other).max() <= 1 for image, other in zip(images, others, strict=True))


def latents(pipe: TextToImage, **options: Any) -> Tensor:
    """Where sampling of one image of DOG ends."""
    request = pipe.resolve(Request(prompts=(DOG,), num_inference_steps=4, **options))
    condition, negative = pipe.encode_cond_and_uncond([DOG], request)
    return sampled(pipe, request, condition, negative)


@torch.no_grad()
def sampled(pipe: TextToImage, request: Request, condition: Conditions, negative: Conditions | None) -> Tensor:
    noise = SeededNoise([0])
    start, grid = noise(torch.empty(1, 4, 8, 8)), pipe.grid(request)
    *_, last = pipe.sample(request, grid, condition, negative, start, noise, None, [DOG])
    return last.x


def test_scale_1_is_the_model_without_guidance_bit_for_bit(pipe: TextToImage) -> None:
    request = pipe.resolve(Request(prompts=(DOG,), num_inference_steps=4))
    alone = sampled(pipe, request, pipe.encode_cond_and_uncond([DOG], request)[0], None)
    assert torch.equal(latents(pipe, guidance_scale=1.0), alone)
    assert not torch.equal(latents(pipe, guidance_scale=1.01), alone)


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, [2, 2, 2, 2]),
        ({"guidance_scale": 1.0}, [1, 1, 1, 1]),
        ({"guidance_interval": (0.8, 6.0)}, [1, 2, 2, 1]),
        ({"prompt": Composed(((DOG, 1.0), (CATS, 0.5)))}, [3, 3, 3, 3]),
    ],
)
def test_a_step_is_one_call_of_the_unet(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], batches: list[int]
) -> None:
    found: list[int] = []
    denoise = pipe.pipeline.denoiser.denoise
    monkeypatch.setattr(pipe.pipeline.denoiser, "denoise", lambda x, *rest: found.append(len(x)) or denoise(x, *rest))
    draw(pipe, **{"prompt": DOG} | options)
    assert found == batches


def test_a_text_with_and_is_several_texts_with_weights() -> None:
    assert Composed.parse("a dog") == "a dog"
    assert Composed.parse("a BAND plays :2") == "a BAND plays :2"
    parsed = Composed.parse("a dog :1.2 AND a hat AND rain:-.5")
    assert parsed == Composed((("a dog", 1.2), ("a hat", 1.0), ("rain", -0.5)))
    assert str(parsed) == "a dog :1.2 AND a hat AND rain :-0.5"
    assert Composed.parse(str(parsed)) == parsed
    assert Composed.parse("at 10:30 AND noon") == Composed((("at 10", 30.0), ("noon", 1.0)))
    for text in ("a dog AND", "AND", "a AND :2 AND b"):
        with pytest.raises(UserError, match="AND stands between two texts"):
            Composed.parse(text)


def test_composed_prompts_stand_beside_plain_ones_in_a_batch(pipe: TextToImage) -> None:
    both = Composed(((DOG, 1.0), (CATS, 0.6)))
    together = draw(pipe, [DOG, both, CATS], seed=3)
    assert near(together, [draw(pipe, each, seed=3 + i)[0] for i, each in enumerate([DOG, both, CATS])])
    assert not near([together[1]], draw(pipe, DOG, seed=4))


def test_composed_prompts_may_be_long_and_have_weighted_words(pipe: TextToImage) -> None:
    long = " ".join([CATS] * 6)
    both = Composed(((f"(dog:0.5) and {DOG}", 1.0), (long, 0.6)))
    options: dict[str, Any] = {"prompt_syntax": "weighted", "long_prompts": True}
    request = pipe.resolve(Request(prompts=(DOG, both), **options))
    windows = [pipe.pipeline.length(subject, request) for subject in (DOG, both, long)]
    assert windows[0] == 1
    assert windows[1] == windows[2] > 2
    found = draw(pipe, both, **options)
    assert near(draw(pipe, [both, DOG], **options)[:1], found)  # whatever else is in the batch
    for other in ({"long_prompts": False}, {"prompt_syntax": "plain"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserNote)
            assert not near(draw(pipe, both, **options | other), found)
    one = Composed(((f"(dog:0.5) and {DOG}", 1.0), (long, 0.0)))
    filled = pipe.resolve(Request(prompts=(one.parts[0][0],), negative_prompt=long, **options))
    assert pipe.pipeline.length(one, filled) == pipe.pipeline.length(filled.prompts[0], filled)


def test_a_text_of_a_composed_prompt_that_is_cut_is_said(pipe: TextToImage) -> None:
    long = " ".join([CATS] * 6)
    with pytest.warns(UserNote, match="does not see"):
        pipe.resolve(Request(prompts=(Composed(((DOG, 1.0), (long, 0.5))),)))


def test_the_rows_of_composed_prompts_count_where_a_batch_is_made_to_fit(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(batch_size, "automatic", lambda pipeline, shape, *more: asked.append(more[:2]) or 8)
    both = Composed(((DOG, 1.0), (CATS, 0.6), ("rain", -0.5)))
    for options in ({"prompt": both}, {"prompt": DOG}, {"prompt": DOG, "guidance_scale": 1.0}):
        draw(pipe, num_inference_steps=1, num_images=2, **options)
    assert asked == [(4, False), (2, False), (1, False)]


def test_a_backward_pass_takes_more_memory_and_a_pixel_model_needs_no_decoder(pipe: TextToImage) -> None:
    shape, pixels = (4, 16, 16), tiny.pixels()
    networks = pipe.pipeline.denoiser, pipe.pipeline.autoencoder
    once, back = (image_memory(*networks, shape, 2, backward) for backward in (False, True))
    assert back > 2 * once
    unet = pixels.denoiser
    assert image_memory(unet, pixels.autoencoder, (3, 16, 16), 2) == 256 * 2 * unet.config.activations() * 4


def test_clip_reads_a_prompt_without_the_syntax_of_its_weights(
    pipe: TextToImage, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    guide = ClipGuidance.from_pretrained(clips["transformers"], crops=1)
    texts = guide.model.texts
    monkeypatch.setattr(guide.model, "texts", lambda prompts: read.extend(prompts) or texts(prompts))
    both = Composed((("a (red:1.3) dog", 1.0), ("[rain]", -0.5)))
    for syntax in ("weighted", "plain"):
        draw(pipe, [both, "(a dog)"], clip=guide, prompt_syntax=syntax, num_inference_steps=1)
    assert read == ["a red dog", "rain", "a dog", "a (red:1.3) dog", "[rain]", "(a dog)"]


def test_clip_guides_images_of_pixel_models(clips: dict[str, Path]) -> None:
    pixels = TextToImage(tiny.pixels(in_channels=3, out_channels=3))
    guide = ClipGuidance.from_pretrained(clips["transformers"], crops=2, prompt="a dog")
    plain, led = (draw(pixels, num_inference_steps=2, clip=clip) for clip in (None, guide))
    assert not near(plain, led)


def test_one_text_of_weight_1_beside_one_of_none_is_that_text(pipe: TextToImage) -> None:
    assert near(draw(pipe, Composed(((DOG, 1.0), (CATS, 0.0)))), draw(pipe, DOG))
    assert near(draw(pipe, Composed(((DOG, 0.5), (DOG, 0.5))), guidance_scale=1.0), draw(pipe, DOG, guidance_scale=1.0))


def test_a_threshold_bounds_the_latents(pipe: TextToImage) -> None:
    assert latents(pipe, guidance_scale=20.0).abs().max() > 3
    assert latents(pipe, guidance_scale=20.0, threshold=0.9).abs().max() <= 3 + 1e-6
    assert latents(pipe, guidance_scale=20.0, threshold=0.9, threshold_range=0.5).abs().max() <= 0.5 + 1e-6
    both = {"guidance_scale": 20.0, "guidance_rescale": 0.7, "guidance_interval": (0.0, 3.0)}
    assert latents(pipe, threshold=0.9, **both).abs().max() <= 3 + 1e-6


def test_a_classifier_makes_its_class_likelier_whatever_the_conditioning(
    pipe: TextToImage, unconditional: TextToImage
) -> None:
    for model, inputs in ((pipe, {"prompt": DOG}), (unconditional, {})):
        guide = ClassifierGuidance(classifier=trained_classifier(model.pipeline), scale=100.0)
        plain, led = (guided_latents(model, guide if on else None, **inputs) for on in (False, True))
        classes, t = torch.tensor([1]), torch.tensor(0)
        with torch.no_grad():
            before, after = (guide.classifier.network.log_probability(x, t, classes).item() for x in (plain, led))
        assert after > before + 0.1


def guided_latents(model: TextToImage, guide: ClassifierGuidance | None, **inputs: Any) -> Tensor:
    found: list[Tensor] = []
    decode = model.decode
    model.decode = lambda x, dtype: found.append(x) or decode(x, dtype)  # type: ignore[method-assign]
    draw(model, **inputs, **({} if guide is None else {"classifier": guide, "classes": 1}))
    del model.decode
    return found[0]


def test_each_image_is_led_to_its_own_class_in_any_batch(unconditional: TextToImage) -> None:
    guide = ClassifierGuidance(classifier=trained_classifier(unconditional.pipeline), scale=20.0)
    together = draw(unconditional, classes=[0, 3], classifier=guide, seed=6)
    assert near(
        together, [draw(unconditional, classes=c, classifier=guide, seed=6 + i)[0] for i, c in enumerate((0, 3))]
    )
    assert not near(together[:1], draw(unconditional, classes=4, classifier=guide, seed=6))


def test_a_saved_classifier_leads_alike(pipe: TextToImage, tmp_path: Path) -> None:
    trained = trained_classifier(pipe.pipeline)
    trained.save_pretrained(tmp_path)
    images = [
        draw(pipe, DOG, classes=2, classifier=guide)
        for guide in (ClassifierGuidance(classifier=trained), ClassifierGuidance.from_pretrained(tmp_path))
    ]
    assert near(*images)


def similarity(clip: Any, image: np.ndarray, text: str) -> float:
    image = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    shown = F.interpolate(image, (clip.side, clip.side), mode="bicubic", antialias=True)
    return (clip.images(shown) @ clip.texts([text]).T).item()


@pytest.mark.parametrize("library", CLIPS)
def test_clip_finds_the_images_that_it_leads_more_like_the_text(clips: dict[str, Path], library: str) -> None:
    pipeline, clip = random_pipeline(), load_clip(clips[library])
    for weight in pipeline.denoiser.conv_out.parameters():  # it knows nothing, and leaves all to CLIP
        torch.nn.init.zeros_(weight)
    plain, led = (
        draw(TextToImage(pipeline), DOG, clip=ClipGuidance(model=clip, scale=scale, crops=3), num_inference_steps=8)[0]
        for scale in (0.0, 100.0)
    )
    assert similarity(clip, led, DOG) > similarity(clip, plain, DOG) + 0.05


def test_clip_with_weight_0_has_no_effect_and_crops_do_not_depend_on_the_batch(
    pipe: TextToImage, clips: dict[str, Path]
) -> None:
    clip = load_clip(clips["transformers"])
    assert near(draw(pipe, DOG, clip=ClipGuidance(model=clip, scale=0.0)), draw(pipe, DOG))
    guide = ClipGuidance(model=clip, scale=20.0, crops=2, prompt=CATS)
    together = draw(pipe, [DOG, CATS], clip=guide, seed=2, eta=1.0)
    assert near(together, [draw(pipe, text, clip=guide, seed=2 + i, eta=1.0)[0] for i, text in enumerate((DOG, CATS))])
    assert not near(together[1:], draw(pipe, CATS, clip=ClipGuidance(model=clip, scale=20.0, crops=3), seed=3, eta=1.0))


def test_transformers_own_similarity_is_ours(clips: dict[str, Path]) -> None:
    from transformers import AutoProcessor, CLIPModel

    network, processor = (kind.from_pretrained(clips["transformers"]) for kind in (CLIPModel, AutoProcessor))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = network(**processor(text=[DOG], images=[Image.fromarray(image)], return_tensors="pt", padding=True))
    theirs = F.cosine_similarity(found.image_embeds, found.text_embeds).item()
    assert similarity(load_clip(clips["transformers"]), image, DOG) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold 0 is not above 0 and at most 1"),
        ({"threshold": 99.5}, "threshold 99.5 is not above 0"),
        ({"threshold_range": 2.0}, "needs a threshold"),
        ({"threshold": 0.9, "threshold_range": 0.0}, "threshold range 0 is not above 0"),
        ({"guidance_scale": 1.0, "guidance_rescale": 0.7}, "a guidance rescale needs guidance"),
        ({"guidance_scale": 1.0, "guidance_interval": (0, 1)}, "a guidance interval needs guidance"),
        ({"classes": 3}, "prompts and classes are given"),
        ({"prompt": Composed(((DOG, float("nan")),))}, "weights of prompts"),
    ],
)
def test_invalid_combinations_raise_errors(pipe: TextToImage, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipe, **{"prompt": DOG} | options)


def test_guides_that_a_model_cannot_follow_raise_errors(
    pipe: TextToImage, unconditional: TextToImage, clips: dict[str, Path], tmp_path: Path
) -> None:
    own, other = (ClassifierGuidance(classifier=trained_classifier(model.pipeline)) for model in (pipe, unconditional))
    clip = ClipGuidance(model=load_clip(clips["transformers"]))
    for options, message in (
        ({"prompt": DOG, "classifier": own}, "classifier guidance needs a class"),
        ({"prompt": DOG, "classifier": own, "classes": 5}, "class 5: the classifier has classes 0 to 4"),
        ({"prompt": DOG, "classifier": own, "classes": (1, 2)}, "2 classes with prompts"),
        ({"prompt": DOG, "classifier": other, "classes": 1}, "latents of another autoencoder"),
    ):
        with pytest.raises(UserError, match=message):
            draw(pipe, **options)
    with pytest.raises(UserError, match="CLIP guidance needs a text"):
        draw(unconditional, clip=clip)
    trained = trained_classifier(pipe.pipeline)
    trained.diffusion = unconditional.pipeline.diffusion
    with pytest.raises(UserError, match="another noise schedule"):
        draw(pipe, DOG, classes=1, classifier=ClassifierGuidance(classifier=trained))
    for make, message in (
        (lambda: load_clip(tmp_path), "no CLIP model"),
        (lambda: load_clip("open_clip:ViT-B-32"), "name its weights as well"),
        (lambda: ClassifierGuidance.from_pretrained(clips["open_clip"]), "holds no classifier"),
        (lambda: ClipGuidance(model=clip.model, crops=0), "crops is 0"),
        (lambda: ClassifierGuidance(classifier=own.classifier, scale=float("inf")), "classifier scale inf"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_the_command_leads_images_and_says_how(pipe: TextToImage, clips: dict[str, Path], tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    trained_classifier(pipe.pipeline).save_pretrained(tmp_path / "classifier")
    options: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "num_inference_steps": 4,
        "device": "cpu",
        "threshold": 0.9,
    }
    options |= {"guidance_rescale": 0.5, "guidance_interval": "0.2:", "classes": [1]}
    options |= {"classifier_scale": 2.0, "clip_crops": 2}
    text, out = f"{DOG} AND {CATS} :0.5", tmp_path / "x.png"
    led = {"classifier": str(tmp_path / "classifier"), "clip": str(clips["open_clip"])}
    generate([text], out=out, **options, **led)
    [image] = draw(
        pipe,
        Composed.parse(text),
        threshold=0.9,
        guidance_rescale=0.5,
        guidance_interval=(0.2, float("inf")),
        classes=1,
        classifier=ClassifierGuidance(classifier=trained_classifier(pipe.pipeline), scale=2.0),
        clip=ClipGuidance.from_pretrained(clips["open_clip"], crops=2),
    )
    written = Image.open(out)
    assert near([np.asarray(written).astype(int)], [image])
    assert written.text["prompt"] == text  # type: ignore[attr-defined]
    facts = json.loads(written.text["ldm"])  # type: ignore[attr-defined]
    given = {"guidance_rescale": 0.5, "threshold": 0.9, "class": 1, "classifier_scale": 2.0, "clip_crops": 2}
    assert facts.items() >= (given | led | {"clip_scale": 100.0}).items()
    for wrong, message in (
        ({"clip_scale": 2.0}, "--clip-scale needs a CLIP: give --clip"),
        ({"classifier_scale": 2.0}, "give --classifier"),
        ({"guidance_interval": "3"}, "--cfg-interval 3: give two values"),
    ):
        with pytest.raises(UserError, match=message):
            generate([DOG], out=out, model=str(tmp_path / "model"), **wrong)


def test_clip_leads_what_a_model_fills(clips: dict[str, Path]) -> None:
    model, halves = TextToImage(tiny.inpainting()), np.repeat([[255] * 16 + [0] * 16], 32, 0).astype(np.uint8)
    given = {"image": Image.new("RGB", (32, 32), (90, 40, 200)), "mask": Image.fromarray(halves)}
    guide = ClipGuidance.from_pretrained(clips["transformers"], crops=2)
    plain, led = (draw(model, "a dog", num_inference_steps=2, clip=clip, **given)[0] for clip in (None, guide))
    assert not near([plain], [led])
    assert np.array_equal(plain[:, 16:], led[:, 16:])
