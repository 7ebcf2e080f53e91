"""Write the tables and the image of docs/autoencoders.md from finished `ldm train-vae` runs on scenes.

    python docs/scripts/first_stage.py runs/kl-f4 runs/vq-f8 --samples 2000 --table table.md --image copies.png

Each run is measured once; its `report.json` is reused. The image shows a row of test images and, below it, one row of
reconstructions for each run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm import Autoencoder
from ldm.config.data import DataConfig
from ldm.data.images import contact_sheet, fit, to_bytes, to_tensor
from ldm.data.sources import Source, open_indexed
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.features import OFFLINE
from ldm.evaluation.plan import Plan

HEAD = "| run | latents | parameters | steps | PSNR (dB) | SSIM | rFID | codebook: usage, perplexity |"
SHOWN = 10


def measured(run: Path, autoencoder: Autoencoder, source: Source, samples: int, statistics: Path) -> dict[str, Any]:
    """Return the metrics of a run, from its report if it has one."""
    path = run / "report.json"
    if not path.is_file():
        metrics = ("psnr", "ssim", "rfid") + (("codebook",) if autoencoder.config.bottleneck.has_codebook else ())
        plan = Plan(metrics=metrics, samples=samples, statistics=statistics, features=OFFLINE)
        path.write_text(json.dumps(evaluate(autoencoder, source, plan).as_dict(), indent=1) + "\n")
    return json.loads(path.read_text())["results"]


def row(run: Path, autoencoder: Autoencoder, results: dict[str, Any], side: int) -> str:
    """Return a row of the table."""
    config, width = autoencoder.config, side // autoencoder.config.downsampling_factor
    parameters = sum(weight.numel() for weight in autoencoder.parameters())
    steps = max(int(line["step"]) for line in map(json.loads, (run / "log.jsonl").open()) if "step" in line)
    used = "-"
    if config.bottleneck.has_codebook:
        share, perplexity = results["codebook_usage"], results["codebook_perplexity"]
        used = f"{share:.1%} of {config.codebook_size}, {perplexity:.0f}"
    psnr, spread = results["psnr"], results["psnr_standard_error"]
    numbers = f"{psnr:.2f} ± {spread:.2f} | {results['ssim']:.3f} | {results['rfid']:.1f}"
    latents = f"{width}x{width}x{config.latent_channels}"
    return f"| {run.name} | {latents} | {parameters:,} | {steps:,} | {numbers} | {used} |"


@torch.inference_mode()
def reconstruct(autoencoder: Autoencoder, images: np.ndarray) -> np.ndarray:
    """Reconstruct images, uint8 (B, H, W, 3)."""
    return to_bytes(autoencoder.decode(autoencoder.encode(to_tensor(images)).mode()))


def main() -> None:
    """Measure all runs, then write the table and the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=2000, help="test images")
    parser.add_argument("--concepts", type=int, default=80, help="of the scenes, as in training")
    parser.add_argument("--statistics", type=Path, default=Path("first-stage-statistics.safetensors"))
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    asked = parser.parse_args()
    autoencoders = [Autoencoder.from_pretrained(run / "vae").eval() for run in asked.runs]
    [side] = {autoencoder.config.sample_size for autoencoder in autoencoders}  # one size for all
    scenes = {"num": asked.samples, "concepts": asked.concepts}
    source = open_indexed("scenes", DataConfig(size=side, scenes=scenes), "test")
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    shown = np.stack([fit(source.image(index), side) for index in range(SHOWN)])
    rows = [shown]
    for run, autoencoder in zip(asked.runs, autoencoders, strict=True):
        results = measured(run, autoencoder, source, asked.samples, asked.statistics)
        lines.append(row(run, autoencoder, results, side))
        print(lines[-1], flush=True)
        rows.append(reconstruct(autoencoder, shown))
    asked.table.write_text("\n".join(lines) + "\n")
    sheet = contact_sheet(np.concatenate(rows), SHOWN)
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(asked.image, optimize=True)


if __name__ == "__main__":
    main()
