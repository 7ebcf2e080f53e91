"""`ldm evaluate` and `ldm reconstruct`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.cli.options import Device, Model, read_options, takes_request
from ldm.cli.output import make_folder, new_file
from ldm.errors import UserError
from ldm.evaluation import SAMPLING

if TYPE_CHECKING:
    from ldm.data.sources import Source
    from ldm.evaluation.plan import Report
    from ldm.generation import TextToImage
    from ldm.models.autoencoder.autoencoder import Autoencoder


@takes_request(SAMPLING)
def evaluate(
    model: Model = "emoji",
    data: Annotated[str, typer.Option(help="Data to compare with, as for training.")] = "scenes",
    split: Annotated[str | None, typer.Option(help="Split of `scenes`: train or test.  [default: test]")] = None,
    concepts: Annotated[
        int | None,
        typer.Option(min=1, help="Number of concepts of `scenes`, from the first.  [default: all, or the probe's]"),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(help="List of fid, kid, precision, clip, scenes, rfid, psnr, ssim, lpips, codebook, neighbours."),
    ] = "fid,kid,precision,rfid,psnr,ssim",
    samples: Annotated[int, typer.Option(min=1, help="Images to generate, and to reconstruct.")] = 1000,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of the data to compare distributions with.  [default: as many as samples]"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="inception (published FIDs), efficientnet-lite0 (offline), timm:MODEL or clip:MODEL.  "
            "[default: inception]"
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="File with the features of the data: read if it exists, else written."),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP model of the clip metric: a folder or a Hub id.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Report (report.json); neighbours go to its folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    device: Device = None,
    **options: Any,
) -> None:
    """Measure a model's images and its autoencoder, or an autoencoder alone, on a data set."""
    names = split_names(metrics)
    check_options(names, data, split, concepts, out)
    from ldm.evaluation.evaluate import evaluate as measure
    from ldm.evaluation.evaluate import image_side
    from ldm.evaluation.plan import Plan
    from ldm.evaluation.scenes.scores import known_concepts
    from ldm.generation import Request
    from ldm.processes import ProcessShare

    given = read_options(options)
    plan = Plan(
        metrics=names,
        samples=samples,
        images=images,
        statistics=statistics,
        features=features,
        clip=clip,
        sampling=Request(**given) if given else None,
        batch_size=batch_size,
    )
    if "scenes" in names and data == "scenes":
        concepts = known_concepts(concepts)
    extractor, share = plan.make_features(), ProcessShare.of_environment()
    loaded = load(model, plan.needs_samples, device or share.device())
    side, most = image_side(loaded), max(samples, plan.references)
    source = share.first_alone(lambda: open_data(data, side, most, split or "test", concepts))
    report = measure(loaded, source, plan, share, extractor)
    share.leave()
    if share.is_first:
        facts = {"split": split or "test", "concepts": concepts} if data == "scenes" else {}
        show(report, report.as_dict() | {"model": model, "data": data} | facts, out, as_json)


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_options(
    metrics: tuple[str, ...], data: str, split: str | None, concepts: int | None, out: Path | None
) -> None:
    """Raise UserError for options that cannot be combined."""
    if "neighbours" in metrics and out is None:
        raise UserError("the image of neighbours is saved beside the report: add --out report.json")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is not a folder")
    if data != "scenes" and (concepts is not None or split is not None):
        raise UserError(f"--{'split' if concepts is None else 'concepts'} works with --data scenes only, not {data}")
    if split not in (None, "train", "test"):
        raise UserError(f"--split {split}: choose train or test")


def show(report: Report, facts: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write a report to a file and print it."""
    if out is not None:
        out.write_text(json.dumps(facts, indent=1) + "\n")
        if report.neighbours is not None:
            report.neighbours.save(new_file(out.with_suffix(".png")))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for note in report.settings.get("notes", ()):
        typer.echo(note, err=True)
    in_table = {} if report.scenes is None else report.scenes.results()
    for name, value in report.results.items():
        if name not in in_table:
            typer.echo(f"{name:24} {value:.5g}")
    if report.scenes is not None:
        typer.echo(report.scenes.table())


def load(model: str, needs_samples: bool, device: str | None) -> TextToImage | Autoencoder:
    """Load a pipeline, or only the autoencoder if there is no pipeline and no samples are needed."""
    from ldm.allocator import keep_freed_memory
    from ldm.checkpoint.find import find_autoencoder, find_model
    from ldm.generation import TextToImage, find_device
    from ldm.models.autoencoder.autoencoder import Autoencoder

    keep_freed_memory()
    if not needs_samples and not (find_model(model) / "model_index.json").is_file():
        return Autoencoder.from_pretrained(find_autoencoder(model)).eval().to(find_device(device))
    return TextToImage.from_pretrained(model, device=device)


def open_data(data: str, side: int, images: int, split: str, concepts: int | None) -> Source:
    """Open the reference images; of `scenes`, only the required ones are rendered."""
    from ldm.config.data import DataConfig
    from ldm.data.sources import open_indexed

    scenes = {"num": images, "concepts": concepts}
    return open_indexed(data, DataConfig(size=side, scenes=scenes), "train" if split == "train" else "test")


def reconstruct(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Images.")],
    model: Model = "emoji",
    out: Annotated[Path, typer.Option(help="Folder for the reconstructions.")] = Path("reconstructions"),
    metrics: Annotated[str, typer.Option(help="List of psnr, ssim, lpips.")] = "psnr,ssim",
    tile: Annotated[
        int | None,
        typer.Option(min=0, help="Side of tiles in pixels; 0 disables tiling.  [default: automatic for large images]"),
    ] = None,
    device: Device = None,
) -> None:
    """Encode and decode images with the autoencoder, and print how similar the results are."""
    import torch
    from PIL import Image

    from ldm.checkpoint.find import find_autoencoder
    from ldm.data.images import read_image
    from ldm.evaluation.fidelity import metrics as fidelity_metrics
    from ldm.evaluation.reconstruct import cut_to_multiple, reconstruction
    from ldm.generation import find_device
    from ldm.models.autoencoder.autoencoder import Autoencoder

    measures = fidelity_metrics(split_names(metrics))
    autoencoder = Autoencoder.from_pretrained(find_autoencoder(model)).eval().to(find_device(device))
    multiple = autoencoder.config.downsampling_factor
    images = [cut_to_multiple(read_image(path), multiple, str(path)) for path in files]
    make_folder(out)
    for path, image in zip(files, images, strict=True):
        made = reconstruction(autoencoder, image, tile)
        both = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in (made, image)]
        values = "  ".join(f"{name} {measure(*both).item():.4g}" for name, measure in measures.items())
        target = new_file(out / f"{path.stem}.png")
        Image.fromarray(made).save(target)
        typer.echo(f"{target}  {values}")
