"""`ldm interpolate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.allocator import keep_freed_memory
from ldm.cli.options import Device, Model, read_options, takes_request
from ldm.cli.output import FOLDER, IMAGE_SUFFIXES, check_writable, make_folder, new_file, next_number
from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MILLISECONDS = 80  # duration of a frame
HELD = 8  # frames that the first and the last image are shown for


@takes_request(["negative_prompt", "guidance_scale", "num_inference_steps", "seed", "size"])
def interpolate(
    first: Annotated[str, typer.Argument(metavar="A", help="A prompt; with --prompt a seed or an image file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same kind as A.")],
    prompt: Annotated[str | None, typer.Option(help="Prompt for all frames between two seeds or images.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Number of images, including both ends.")] = 16,
    model: Model = "emoji",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .gif, another image file for a contact sheet, or a folder.  [default: a new .gif in generated/]"
        ),
    ] = None,
    device: Device = None,
    **options: Any,
) -> None:
    """Interpolate between two prompts, seeds or images; between images without guidance."""
    new = out is None
    if out is None:
        make_folder(FOLDER)
        out = FOLDER / "interpolate.gif"
    elif out.suffix == "":
        make_folder(out)
    elif out.suffix.lower() not in (".gif", *IMAGE_SUFFIXES):
        raise UserError(f"--out {out} is not a .gif, an image file or a folder: give one of these")
    check_writable([out / "frame" if out.is_dir() else out])

    from ldm.data.images import read_image
    from ldm.generation import Request, TextToImage, interpolate

    kind, given = kind_of(first, second, prompt), read_options(options)
    if kind != "prompts" and "seed" in given:
        raise UserError(f"--seed {given['seed']} is for two prompts: leave it out for {kind}")
    if kind == "images" and given.keys() & {"guidance_scale", "negative_prompt"}:
        raise UserError("--cfg and --negative are for prompts and seeds: images are interpolated without guidance")
    request = Request(prompts=(prompt or first,), **{"guidance_scale": 3.0} | given)
    interpolate.shares(frames)
    keep_freed_memory()
    pipe = TextToImage.from_pretrained(model, device=device)
    if kind == "prompts":
        images = interpolate.between_prompts(pipe, first, second, frames, request)
    elif kind == "seeds":
        start_seed, end_seed = (replace(request, seed=int(end)).seed for end in (first, second))  # checks their range
        images = interpolate.between_seeds(pipe, prompt or "", start_seed, end_seed, frames, request)
    else:
        start, end = (read_image(Path(path)) for path in (first, second))
        images = interpolate.between_images(pipe, prompt or "", start, end, frames, request)
    out = new_file(out) if new else out
    save(images, out)
    typer.echo(out)


def kind_of(first: str, second: str, prompt: str | None) -> str:
    """Return whether the ends are "images", "seeds" or "prompts"; raises UserError if they are of two kinds."""
    files = [Path(end).suffix.lower() in IMAGE_SUFFIXES for end in (first, second)]
    if all(files):
        return "images"
    if any(files):
        raise UserError(f"from {first} to {second}: give two images, two seeds or two prompts")
    if prompt is None:
        return "prompts"
    if not (first.isdigit() and second.isdigit()):
        raise UserError(f"--prompt {prompt}: give two seeds or two image files, or leave it out for two prompts")
    return "seeds"


def save(images: list[Image.Image], out: Path) -> None:
    """Save frames as a GIF, a contact sheet or a folder, by the name of `out`."""
    from ldm.data.images import contact_sheet

    try:
        if out.suffix.lower() == ".gif":
            times = [MILLISECONDS] * len(images)
            times[0] = times[-1] = HELD * MILLISECONDS
            images[0].save(out, save_all=True, append_images=images[1:], duration=times, loop=0)
        elif out.is_dir():
            for number, image in enumerate(images, start=next_number(out)):
                image.save(new_file(out / f"frame-{number:03d}.png"))
        else:
            contact_sheet(images, columns=min(len(images), 8)).save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
