"""Stable Diffusion 1.5 with random weights at its real size: 1.07 billion parameters, 4.3 GB of files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import PEAK
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ldm.checkpoint.diffusers.pipeline import save_scheduler
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.files import save_text_encoder
from ldm.config.files import load
from ldm.devices import on_meta
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.storage.store import save_json

pytestmark = pytest.mark.slow


def materialised(network: nn.Module, seed: int) -> nn.Module:
    """A network built on the meta device, with random weights small enough that its output stays finite."""
    network = network.to_empty(device="cpu")
    torch.manual_seed(seed)
    for name, weight in network.named_parameters():
        spread = 0.7 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.02
        nn.init.uniform_(weight, -spread, spread)
        if "norm" in name and name.endswith("weight"):
            weight.data += 1
    return network


def save_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with 49,408 made-up pieces, which is all that a checkpoint's size depends on."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += [f"piece{number}" for number in range(49406 - len(pieces))] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("sd15")
    config = load("published/sd1")
    with on_meta():
        autoencoder, unet = Autoencoder(config.autoencoder), UNet(config.unet)
        text_encoder = make_text_encoder(CLIPConfig())
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    materialised(autoencoder, 0).save_pretrained(path / "vae")
    materialised(unet, 1).save_pretrained(path / "unet")
    save_text_encoder(materialised(text_encoder, 2), path / "text_encoder")
    save_tokenizer(path / "tokenizer")
    save_scheduler(config.diffusion, path / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.32.0"}
    pipeline = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
    texts = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    index |= {name: ["diffusers", kind] for name, kind in pipeline.items()}
    index |= {name: ["transformers", kind] for name, kind in texts.items()}
    save_json(path / "model_index.json", index)
    yield path
    for weights in path.rglob("*.safetensors"):  # pytest keeps the folders of its last three sessions
        weights.unlink()


LOADED = """
import json, sys, time
began = time.monotonic()
from ldm import TextToImage
pipe = TextToImage.from_pretrained(sys.argv[1], device="cpu")
seconds = time.monotonic() - began
weights = [weight for network in pipe.pipeline.modules.values() for weight in network.parameters()]
total = sum(weight.sum().item() for weight in weights)  # reads every page
held = sum(weight.nbytes for weight in weights)
print(json.dumps({"seconds": seconds, "peak": peak(), "held": held, "total": total}))
"""


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_it_loads_in_15_seconds_and_little_more_memory_than_its_files(folder: Path) -> None:
    before = int(_run(PEAK + "from ldm import TextToImage; print(peak())"))
    found = json.loads(_run(PEAK + LOADED, str(folder)))
    assert found["peak"] > size_of(folder)  # every weight was read
    size = size_of(folder)
    assert size > 4_200_000_000
    assert found["held"] > 0.999 * size
    assert found["seconds"] < 15, found
    assert found["peak"] - before < 1.15 * size, (found, before, size)


def test_one_call_of_the_unet_is_that_of_diffusers(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 64, 64, generator=generator)
    context = torch.randn(1, 77, 768, generator=generator)
    t = torch.tensor([601])
    with torch.inference_mode():
        ours: Tensor = UNet.from_pretrained(folder / "unet")(latents, t, context)
        theirs = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)(latents, t, context).sample
    assert ours.abs().mean() > 0.01
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
