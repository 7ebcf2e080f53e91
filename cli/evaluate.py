"""`ldm evaluate` and `ldm reconstruct`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ldm.errors import UserError

Model = Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")]


def evaluate(
    model: Model = "emoji",
    data: Annotated[
        str, typer.Option(help="What to compare with: as for training; `scenes` means its test split.")
    ] = "scenes",
    metrics: Annotated[
        str, typer.Option(help="Of fid, kid, precision, clip, rfid, psnr, ssim, lpips, neighbours.")
    ] = "fid,kid,precision,rfid,psnr,ssim",
    samples: Annotated[int, typer.Option(help="Pictures to draw, and pictures of the data to compare with.")] = 1000,
    features: Annotated[
        str,
        typer.Option(help="inception (published FIDs), efficientnet-lite0 (offline), timm:MODEL or clip:MODEL."),
    ] = "inception",
    clip: Annotated[str | None, typer.Option(help="CLIP model for the score: a folder or a Hub id.")] = None,
    cfg: Annotated[float, typer.Option("--cfg", help="Classifier-free guidance scale; 1 is off.")] = 3.0,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 30,
    sampler: Annotated[str, typer.Option(help="As in `ldm generate`.")] = "ddim",
    eta: Annotated[float | None, typer.Option(help="Fresh noise in a step of ddim.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first sample; the next ones have the next seeds.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 32,
    concepts: Annotated[int | None, typer.Option(help="Of `scenes`: only the first so many.  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="report.json; the picture of neighbours lies beside it.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")] = None,
) -> None:
    """Measure a model's pictures and its autoencoder against a data set."""
    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    if "neighbours" in names and out is None:
        raise UserError("the picture of neighbours is written beside the report: give --out report.json")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"no folder {out.parent} to write the report to")
    if concepts is not None and data != "scenes":
        raise UserError(f"--concepts is an option of scenes, not of {data}")
    from ldm.config import DataConfig, ScenesConfig
    from ldm.data.sources import open_indexed
    from ldm.evaluation.evaluate import Plan
    from ldm.evaluation.evaluate import evaluate as measure
    from ldm.pipeline import TextToImage
    from ldm.processes import ProcessShare

    plan = Plan(
        metrics=names,
        samples=samples,
        features=features,
        clip=clip,
        guidance_scale=cfg,
        num_inference_steps=steps,
        sampler=sampler,
        eta=eta,
        seed=seed,
        batch_size=batch_size,
    )
    extractor, share = plan.make_features(), ProcessShare.of_environment()
    pipe = TextToImage.from_pretrained(model, device=device or share.device())
    side = pipe.parts.unet.config.sample_size * pipe.parts.autoencoder.config.downsampling_factor
    scenes = ScenesConfig(num=samples, concepts=concepts)
    source = open_indexed(data, DataConfig(size=side, scenes=scenes), split="test")
    report = measure(pipe, source, plan, share, extractor)
    share.leave()
    if not share.is_first:
        return
    for name, value in report.results.items():
        typer.echo(f"{name:24} {value:.5g}")
    if out is not None:
        facts = report.as_dict() | {"model": model, "data": data}
        out.write_text(json.dumps(facts, indent=1) + "\n")
        if report.neighbours is not None:
            report.neighbours.save(out.with_suffix(".png"))


def reconstruct(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pictures.")],
    model: Model = "emoji",
    out: Annotated[Path, typer.Option(help="A folder for the reconstructions.")] = Path("reconstructions"),
    metrics: Annotated[str, typer.Option(help="Of psnr, ssim, lpips.")] = "psnr,ssim",
    tile: Annotated[
        int | None, typer.Option(min=0, help="Side of tiles in pixels; 0: none.  [default: for large pictures]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")] = None,
) -> None:
    """Send pictures through the autoencoder and back, and say how near they come."""
    import torch
    from PIL import Image

    from ldm.checkpoint.diffusers import find_autoencoder, load_autoencoder
    from ldm.data.pictures import read_picture
    from ldm.evaluation.fidelity import metrics as fidelity_metrics
    from ldm.evaluation.reconstruct import cut_to_multiple, reconstruction
    from ldm.pipeline import find_device

    measures = fidelity_metrics(name.strip() for name in metrics.split(",") if name.strip())
    autoencoder = load_autoencoder(find_autoencoder(model)).eval().to(find_device(device))
    multiple = autoencoder.config.downsampling_factor
    pictures = [cut_to_multiple(read_picture(path), multiple, str(path)) for path in files]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
    for path, picture in zip(files, pictures, strict=True):
        made = reconstruction(autoencoder, picture, tile)
        both = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in (made, picture)]
        values = "  ".join(f"{name} {measure(*both).item():.4g}" for name, measure in measures.items())
        target = out / f"{path.stem}.png"
        Image.fromarray(made).save(target)
        typer.echo(f"{target}  {values}")
