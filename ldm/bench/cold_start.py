"""Time from the start of a process to its first image."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.bench.workload import Run, Workload
from ldm.checkpoint.find import find_model

PROMPT = "a corgi playing a trumpet"
STEPS, SCALE, SEED = 30, 3.0, 0
OURS = ["--steps", str(STEPS), "--cfg", str(SCALE), "--seed", str(SEED)]
THEIRS = """
import sys
import torch
from diffusers import StableDiffusionPipeline

folder, prompt, steps, scale, seed, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
pipe.set_progress_bar_config(disable=True)
side = pipe.unet.config.sample_size * pipe.vae_scale_factor
generator = torch.Generator().manual_seed(int(seed))
options = dict(guidance_scale=float(scale), num_inference_steps=int(steps), generator=generator)
pipe(prompt, height=side, width=side, **options).images[0].save(out)
"""


def cold_start(against: bool) -> Workload:
    """Generate one image of the built-in model, with `ldm generate` and with a StableDiffusionPipeline script."""
    scratch = tempfile.TemporaryDirectory()
    ours, theirs = (Path(scratch.name) / f"{side}.png" for side in ("ours", "theirs"))
    script = [sys.executable, "-c", THEIRS, str(find_model("emoji")), PROMPT, str(STEPS), str(SCALE), str(SEED)]
    return Workload(
        ours=_run([sys.executable, "-m", "ldm", "generate", PROMPT, *OURS, "--out", str(ours)], ours),
        theirs=_run([*script, str(theirs)], theirs) if against else None,
        in_subprocess=True,
        close=scratch.cleanup,
    )


def _run(command: Sequence[str], out: Path) -> Run:
    def run() -> Tensor:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} ... failed: {done.stderr}")
        return torch.from_numpy(np.array(Image.open(out))).float()  # (H, W, 3)

    return run
