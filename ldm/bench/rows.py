"""The rows of `ldm bench`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial

import torch

from ldm.bench.cold_start import cold_start
from ldm.bench.decoding import decoding
from ldm.bench.draft import draft
from ldm.bench.sampling import image, sampling, step
from ldm.bench.training import train_cached, train_step
from ldm.bench.workload import Maker
from ldm.devices import computes_bfloat16, find_device
from ldm.errors import UserError

FP32, BF16 = torch.float32, torch.bfloat16

ROWS: dict[str, Maker] = {
    "small-sampling-fp32": partial(sampling, "bench/small", FP32),
    "small-sampling-bf16": partial(sampling, "bench/small", BF16),
    "sd15-step-fp32": partial(step, "published/sd1", FP32),
    "sd15-step-bf16": partial(step, "published/sd1", BF16),
    "decode-256-fp32": partial(decoding, "published/sd1", 256, FP32),
    "decode-256-bf16": partial(decoding, "published/sd1", 256, BF16),
    "decode-512-fp32": partial(decoding, "published/sd1", 512, FP32),
    "decode-512-bf16": partial(decoding, "published/sd1", 512, BF16),
    "train-step": partial(train_step, "bench/small"),
    "train-cached": partial(train_cached, "bench/train-cached"),
    "cold-start": cold_start,
    "draft": draft,
}

# Real sizes, which take too long on a CPU.
GPU_ROWS: dict[str, Maker] = {
    "sd15-image-bf16": partial(image, "published/sd1", BF16),
    "sd2-train-bf16": partial(train_step, "bench/sd2-256"),
}


def chosen(names: Sequence[str]) -> dict[str, Maker]:
    """Return the rows of these names in the order of the table, by default all that this machine can run.

    Raises:
        UserError: if a row is unknown, or needs a GPU or bfloat16, which this machine lacks.
    """
    every, gpu, half = ROWS | GPU_ROWS, torch.cuda.is_available(), computes_bfloat16(find_device())
    for name in names:
        if name not in every:
            near = difflib.get_close_matches(name, every, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--only {name or repr(name)}: unknown row; {hint}Rows: {', '.join(every)}")
        if name in GPU_ROWS and not gpu:
            raise UserError(f"--only {name}: this row needs a CUDA device")
        if name.endswith("bf16") and not half:
            raise UserError(f"--only {name}: this processor has no instructions for bfloat16")
    table = every if gpu else ROWS
    possible = (name for name in table if half or not name.endswith("bf16"))
    return {name: table[name] for name in possible if not names or name in names}
