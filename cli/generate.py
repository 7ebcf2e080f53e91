"""`ldm generate`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.allocator import keep_freed_memory
from ldm.cli import guidance
from ldm.cli.options import Device, Model, read_options, takes_request
from ldm.cli.output import FOLDER, check_writable, grid_columns, names_file, output_paths, save, save_grid
from ldm.generation.option import PROMPT, parse_prompts

if TYPE_CHECKING:
    from ldm.generation import Progress, Request, TextToImage
    from ldm.processes import ProcessShare

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROMPT]...",
        help="Text of the images, such as `a dog` or, with weights, `a dog AND a hat :0.8`; @prompts.txt: one prompt "
        "per line. Leave it out for models that take no text.",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="An image file, numbered if there are several images, or a folder, where no file is overwritten."
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Decode with this autoencoder of the same latents.  [default: the model's]"),
]
Grid = Annotated[bool, typer.Option("--grid", help="Save one contact sheet, with a row for each prompt.")]
Tile = Annotated[
    int | None,
    typer.Option(min=0, help="Side of the autoencoder's tiles in pixels; 0: none.  [default: tiles for large images]"),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile for a GPU: slower by a minute for the first images of a size.")
]


@takes_request()
def generate(
    prompts: Prompts = None,
    model: Model = "emoji",
    vae: Vae = None,
    classifier: guidance.Classifier = None,
    classifier_scale: guidance.ClassifierScale = None,
    clip: guidance.Clip = None,
    clip_scale: guidance.ClipScale = None,
    clip_crops: guidance.ClipCrops = None,
    clip_prompt: guidance.ClipPrompt = None,
    out: Out = FOLDER,
    grid: Grid = False,
    tile: Tile = None,
    device: Device = None,
    compiled: Compile = False,
    **options: Any,
) -> None:
    """Generate images from text, classes or other images."""
    texts = parse_prompts(prompts or [])
    names = texts or [f"class {each}" for each in options.get("classes") or []] or [""]
    count = 1 if options.get("num_images") is None else options["num_images"]
    paths = output_paths(out, names, count, grid)
    check_writable(paths)

    import torch

    from ldm.generation import Composed, Request, TextToImage
    from ldm.processes import ProcessShare

    request = Request(
        prompts=tuple(map(Composed.parse, texts)),
        classifier=guidance.load_classifier(classifier, classifier_scale),
        clip=guidance.load_clip(clip, clip_scale, clip_crops, clip_prompt),
        **read_options(options),
    )
    share = ProcessShare.of_environment()
    keep_freed_memory()
    place = device or share.device()
    pipe = TextToImage.from_pretrained(model, request.dtype or torch.float32, place, tile, compiled=compiled, vae=vae)
    request = pipe.resolve(request)
    files = {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    facts = parameters(request, model, pipe.size(request), files) | guidance.guidance_facts(request, classifier, clip)
    facts |= {name: value for name, value in {"tile": tile, "vae": vae}.items() if value is not None}
    new = not names_file(out)
    if grid:
        _save_grid(pipe, request, share, paths[0], names, facts, new)
    else:
        _save_images(pipe, request, share, paths, facts, new)


def _save_images(
    pipe: TextToImage, request: Request, share: ProcessShare, paths: list[Path], facts: dict[str, object], new: bool
) -> None:
    """Generate and save this process' share of the images."""
    numbers = share.of(len(request.images))
    with progress_bar() as progress:
        for number, image in zip(numbers, pipe.generate(request, None, progress, numbers), strict=True):
            subject, seed = request.images[number]
            own = {"class": subject} if isinstance(subject, int) else {}
            prompt = "" if subject is None or isinstance(subject, int) else str(subject)
            save(image, paths[number], prompt, facts | own | {"seed": seed}, new)


def _save_grid(
    pipe: TextToImage,
    request: Request,
    share: ProcessShare,
    path: Path,
    names: list[str],
    facts: dict[str, object],
    new: bool,
) -> None:
    """Generate this process' share of the images, and save those of all processes as one contact sheet."""
    with progress_bar() as progress:
        images = share.gather(list(pipe.generate(request, None, progress, share.of(len(request.images)))))
    if share.is_first:
        columns = request.num_images if request.num_images > 1 else grid_columns(len(names))
        save_grid(images, columns, path, names, facts | {"seed": request.seed}, new)
    share.leave()


def parameters(request: Request, model: str, size: tuple[int, int], files: dict[str, str]) -> dict[str, object]:
    """Return the PNG parameters of a resolved request but prompt and seed: options that differ from their defaults.

    `files` are the paths of input images by option.
    """
    import torch

    import ldm

    facts: dict[str, object] = {}
    for each in fields(request):
        value, name = getattr(request, each.name), each.metadata["option"].record
        if value != each.default and name != "":
            shown = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
            facts[name or each.name] = files.get(each.name, shown)
    return facts | {"model": model, "size": f"{size[0]}x{size[1]}", "ldm_version": ldm.__version__} | files


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Yield a function that reports steps to a bar with rate and time left, or None if there is no terminal."""
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
