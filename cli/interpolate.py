"""`ldm interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.allocator import keep_freed_memory
from ldm.cli.generate import parse_size
from ldm.cli.output import IMAGE_SUFFIXES, check_writable
from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MILLISECONDS = 80  # a frame is shown
HELD = 8  # frames' time that the two ends are shown


def interpolate(
    first: Annotated[str, typer.Argument(metavar="A", help="A prompt; or with --prompt a seed or an image's file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same kind.")],
    prompt: Annotated[
        str | None, typer.Option(help="What is drawn between two seeds, or what two images show.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Images, both ends included.")] = 16,
    model: Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")] = "emoji",
    cfg: Annotated[
        float | None, typer.Option("--cfg", help="Guidance scale.  [default: 3; between images it is off]")
    ] = None,
    negative: Annotated[str, typer.Option(help="What to guide away from.")] = "",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 30,
    seed: Annotated[int | None, typer.Option(help="Of the noise between two prompts.  [default: 0]")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels.")] = None,
    out: Annotated[Path, typer.Option(help="x.gif moves; other images are sheets; a folder gets a file a frame.")] = (
        Path("interpolate.gif")
    ),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")] = None,
) -> None:
    """Walk from one prompt, seed or image to another."""
    if out.suffix == "":
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
    elif out.suffix.lower() not in (".gif", *IMAGE_SUFFIXES):
        raise UserError(f"--out {out}: give a .gif, an image's file or a folder")
    check_writable([out / "frame" if out.is_dir() else out])
    width_and_height = parse_size(size)

    from ldm.data.images import read_image
    from ldm.generation import Request, TextToImage, interpolate

    kind = kind_of(first, second, prompt)
    if kind != "prompts" and seed is not None:
        raise UserError("--seed is that of a walk between two prompts: seeds are ends themselves, images need none")
    if kind == "images" and (cfg is not None or negative):
        raise UserError("--cfg and --negative: a walk between images goes without guidance, which would leave them")
    request = Request(
        prompts=(prompt or first,),
        negative_prompt=negative,
        guidance_scale=3.0 if cfg is None else cfg,
        num_inference_steps=steps,
        seed=seed or 0,
        size=width_and_height,
    )
    interpolate.shares(frames)
    keep_freed_memory()
    pipe = TextToImage.from_pretrained(model, device=device)
    if kind == "prompts":
        images = interpolate.between_prompts(pipe, first, second, frames, request)
    elif kind == "seeds":
        images = interpolate.between_seeds(pipe, prompt or "", int(first), int(second), frames, request)
    else:
        start, end = (read_image(Path(path)) for path in (first, second))
        images = interpolate.between_images(pipe, prompt or "", start, end, frames, request)
    save(images, out)
    typer.echo(out)


def kind_of(first: str, second: str, prompt: str | None) -> str:
    """Whether the ends are `images`, `seeds` or `prompts`; UserError where they do not go together."""
    files = [Path(end).suffix.lower() in IMAGE_SUFFIXES for end in (first, second)]
    if all(files):
        return "images"
    if any(files):
        raise UserError(f"from {first} to {second}: give two images, two seeds or two prompts")
    if prompt is None:
        return "prompts"
    if not (first.isdigit() and second.isdigit()):
        raise UserError("--prompt goes with two seeds or two images; two prompts need no third")
    return "seeds"


def save(images: list[Image.Image], out: Path) -> None:
    """Write frames as what the name of `out` says."""
    from ldm.data.images import contact_sheet

    try:
        if out.suffix.lower() == ".gif":
            times = [MILLISECONDS] * len(images)
            times[0] = times[-1] = HELD * MILLISECONDS
            images[0].save(out, save_all=True, append_images=images[1:], duration=times, loop=0)
        elif out.is_dir():
            for number, image in enumerate(images):
                image.save(out / f"frame-{number:03d}.png")
        else:
            contact_sheet(images, columns=min(len(images), 8)).save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
