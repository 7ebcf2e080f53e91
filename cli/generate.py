"""`ldm generate`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.allocator import keep_freed_memory
from ldm.cli import guidance
from ldm.cli.output import check_writable, grid_columns, output_paths, save, save_grid
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.generation import Progress, Request

DTYPES = ("float32", "bfloat16", "float16")

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROMPT]...",
        help="What to draw, such as `a dog` or `a dog AND a hat :0.8`; @prompts.txt: a prompt a line; "
        "none where the model knows no text.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class to draw, its number or name; for each one more.", show_default=False),
]
NegativeClass = Annotated[
    str | None, typer.Option(help="The class to guide away from.  [default: what the model learned as none]")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--cfg", help="Classifier-free guidance scale; 1 is off.  [default: 3 where there is something to guide to]"
    ),
]
Negative = Annotated[str, typer.Option(help="What to guide away from.")]
Syntax = Annotated[
    str, typer.Option(help="plain, weighted, where (word:1.3) is 1.3 times as strong, or a1111, with the mean kept.")
]
LongPrompts = Annotated[
    bool, typer.Option("--long-prompts", help="Read prompts to their end, in pieces of what the text encoder takes.")
]
Quality = Annotated[
    str,
    typer.Option(
        help="What is chosen for options that are not given. exact: nothing is left out. fast: 15 steps of unipc, in "
        "bfloat16 where that is fast. draft: 10 of them. FID of the built-in model (240 images, features of "
        "EfficientNet-Lite0): 149.4, 148.8, 149.4. docs/presets.md has more."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Sampling steps.  [default: 30; fast 15, draft 10]")]
Spacing = Annotated[
    str | None,
    typer.Option(help="leading, trailing, linspace, fractional, karras or exponential.  [default: the model's own]"),
]
Timesteps = Annotated[
    str | None, typer.Option(metavar="T,T,...", help="These steps, such as 999,749,499,249, not a number of them.")
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        help="ddim, ddpm, ddpm-large, euler, euler-ancestral, heun, plms, dpmpp-2m, dpmpp-2m-sde, unipc or lcm.  "
        "[default: ddim; fast and draft unipc]"
    ),
]
DeepCache = Annotated[
    int | None,
    typer.Option(metavar="N", help="Compute deep features in every N-th step alone, 1: in each.  [default: 1]"),
]
Eta = Annotated[float | None, typer.Option(help="Fresh noise in a step of ddim, 0 to 1.  [default: 0]")]
Seed = Annotated[int, typer.Option(help="Of the first image; the next ones have the next seeds.")]
Num = Annotated[int, typer.Option(min=1, help="Images of each prompt.")]
BatchSize = Annotated[int | None, typer.Option(help="Images at a time.  [default: what fits the memory]")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="In pixels.  [default: what the model learned]")]
ImageFile = Annotated[Path | None, typer.Option(metavar="FILE", help="An image to start from, or one to make larger.")]
Strength = Annotated[float | None, typer.Option(help="How much to draw anew, 0 to 1.  [default: 0.8; with --mask 1]")]
MaskFile = Annotated[Path | None, typer.Option(metavar="FILE", help="White where to draw anew, black where it stays.")]
LayoutFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A PNG of class numbers, in grey or with a palette, for a model of such maps."),
]
Out = Annotated[Path, typer.Option(help="An image's file, numbered when there are several, or a folder.")]
Grid = Annotated[bool, typer.Option("--grid", help="One contact sheet; with several images a prompt, a row each.")]
Tile = Annotated[
    int | None,
    typer.Option(min=0, help="Side of the autoencoder's tiles in pixels; 0: none.  [default: for large images]"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")]
Compile = Annotated[
    bool, typer.Option("--compile", help="On a GPU: a minute before the first images of a size, the others sooner.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.  [default: float32; fast and draft as --quality says]"),
]


def generate(
    prompts: Prompts = None,
    model: Model = "emoji",
    classes: Classes = None,
    cfg: Guidance = None,
    negative: Negative = "",
    negative_class: NegativeClass = None,
    prompt_syntax: Syntax = "plain",
    long_prompts: LongPrompts = False,
    cfg_rescale: guidance.Rescale = 0.0,
    cfg_interval: guidance.Interval = None,
    threshold: guidance.Threshold = None,
    threshold_range: guidance.ThresholdRange = None,
    classifier: guidance.Classifier = None,
    classifier_scale: guidance.ClassifierScale = None,
    clip: guidance.Clip = None,
    clip_scale: guidance.ClipScale = None,
    clip_crops: guidance.ClipCrops = None,
    clip_prompt: guidance.ClipPrompt = None,
    quality: Quality = "exact",
    steps: Steps = None,
    spacing: Spacing = None,
    timesteps: Timesteps = None,
    sampler: SamplerName = None,
    eta: Eta = None,
    deepcache: DeepCache = None,
    seed: Seed = 0,
    num: Num = 1,
    batch_size: BatchSize = None,
    size: Size = None,
    image: ImageFile = None,
    strength: Strength = None,
    mask: MaskFile = None,
    layout: LayoutFile = None,
    out: Out = Path("images"),
    grid: Grid = False,
    tile: Tile = None,
    device: Device = None,
    dtype: Dtype = None,
    compiled: Compile = False,
) -> None:
    """Draw images of prompts, or of classes."""
    texts = read_prompts(prompts or [])
    names = texts or [f"class {each}" for each in classes or []] or [""]
    paths = output_paths(out, names, num, grid)
    width_and_height = parse_size(size)
    levels, interval = parse_timesteps(timesteps), guidance.parse_interval(cfg_interval)
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {dtype}: give {', '.join(DTYPES)}")
    check_writable(paths)

    import torch

    from ldm.data.images import decode_map, read_image
    from ldm.generation import Composed, Request, TextToImage
    from ldm.processes import ProcessShare

    request = Request(
        prompts=tuple(map(Composed.parse, texts)),
        negative_prompt=negative,
        prompt_syntax=prompt_syntax,
        long_prompts=long_prompts,
        classes=tuple(classes or ()),
        negative_class=negative_class,
        guidance_scale=cfg,
        guidance_rescale=cfg_rescale,
        guidance_interval=interval,
        threshold=threshold,
        threshold_range=threshold_range,
        classifier=guidance.load_classifier(classifier, classifier_scale),
        clip=guidance.load_clip(clip, clip_scale, clip_crops, clip_prompt),
        quality=quality,
        num_inference_steps=steps,
        spacing=spacing,
        timesteps=levels,
        num_images=num,
        batch_size=batch_size,
        seed=seed,
        sampler=sampler,
        eta=eta,
        deepcache=deepcache,
        dtype=None if dtype is None else getattr(torch, dtype),
        size=width_and_height,
        image=None if image is None else read_image(image),
        strength=strength,
        mask=None if mask is None else read_image(mask),
        layout=None if layout is None else decode_map(layout, str(layout)),
    )
    share = ProcessShare.of_environment()
    keep_freed_memory()
    place = device or share.device()
    pipe = TextToImage.from_pretrained(model, request.dtype or torch.float32, place, tile, compiled=compiled)
    request = pipe.resolve(request)
    files = (("image", image), ("mask", mask), ("layout", layout))
    given = {name: str(path) for name, path in files if path is not None}
    facts = parameters(request, model, pipe.size(request)) | guidance.guidance_facts(request, classifier, clip) | given
    facts |= {} if tile is None else {"tile": tile}
    numbers = share.of(len(request.images))
    with progress_bar() as progress:
        images = pipe.draw(request, progress=progress, numbers=numbers)
        if grid:
            whole = share.gather(list(images))
            if share.is_first:
                save_grid(whole, num if num > 1 else grid_columns(len(names)), paths[0], names, facts | {"seed": seed})
            share.leave()
            return
        for number, drawn in zip(numbers, images, strict=True):
            subject, image_seed = request.images[number]
            own = {"class": subject} if isinstance(subject, int) else {}
            prompt = str(subject) if isinstance(subject, str | Composed) else ""
            save(drawn, paths[number], prompt, facts | own | {"seed": image_seed})
            typer.echo(paths[number])


def read_prompts(arguments: Sequence[str]) -> list[str]:
    """The prompts given, with `@file` replaced by the file's lines; raises UserError when it has none."""
    prompts: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            prompts.append(argument)
            continue
        path = Path(argument[1:])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read prompts from {path}: {getattr(error, 'strerror', None) or error}") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"{path} has no prompts: give it one a line")
        prompts += found
    return prompts


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height out of "WxH"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise UserError(f"--size {text}: give width and height such as 96x64")
    return int(match[1]), int(match[2])


def parse_timesteps(text: str | None) -> tuple[float, ...] | None:
    """Timesteps out of "999,749.5,..."."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--timesteps {text}: give numbers such as 999,749,499,249") from None


def parameters(request: Request, model: str, size: tuple[int, int]) -> dict[str, object]:
    """What besides prompt and seed makes the image what it is."""
    import ldm
    from ldm.diffusion.samplers import sampler_eta

    levels: dict[str, object] = {"spacing": request.spacing} if request.spacing else {}
    if request.timesteps:
        levels = {"timesteps": request.timesteps}
    if request.image is not None:
        levels |= {"strength": request.given_strength}
    if request.prompt_syntax != "plain":
        levels |= {"prompt_syntax": request.prompt_syntax}
    if request.long_prompts:
        levels |= {"long_prompts": True}
    if request.negative_class is not None:
        levels |= {"negative_class": request.negative_class}
    assert request.sampler is not None  # a resolved request has one
    return {
        "negative_prompt": request.negative_prompt,
        "steps": request.steps,
        **levels,
        **economies(request),
        "sampler": request.sampler,
        "eta": sampler_eta(request.sampler) if request.eta is None else request.eta,
        "guidance_scale": request.guidance_scale,
        "model": model,
        "size": f"{size[0]}x{size[1]}",
        "ldm_version": ldm.__version__,
    }


def economies(request: Request) -> dict[str, object]:
    """What is saved in a resolved request, nothing where nothing is: its type and its deepcache of deep features."""
    facts: dict[str, object] = {} if request.quality == "exact" else {"quality": request.quality}
    if request.deepcache is not None and request.deepcache > 1:
        facts |= {"deepcache": request.deepcache}
    return facts if request.dtype is None else facts | {"dtype": str(request.dtype).removeprefix("torch.")}


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """What the sampler reports its steps to: a bar with rate and time left on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def report(done: int, total: int) -> None:
            rate = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f} steps/s" if rate else "")

        yield report
