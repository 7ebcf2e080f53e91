"""Train a latent text-to-image model from scratch and sample from it, on the public pieces of `ldm`.

    python examples/minimal.py --out minimal.png

Read it from top to bottom: an autoencoder compresses images to latents, a text encoder turns captions into a context,
a U-Net learns to remove noise from the latents, and a sampler starts from noise alone. `ldm train-vae` and
`ldm train-unet` do the same with resuming, several GPUs, caches, moving averages, metrics and logs around it.
With the defaults this takes about a quarter of an hour on one CPU core, which is far too short for good images: raise
`--unet-steps` for those.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import TextEncoder, make_text_encoder
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.data import DataConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.data.images import contact_sheet, to_bytes, to_tensor
from ldm.data.sources import Source, open_indexed
from ldm.diffusion.denoiser import Denoiser, make_denoiser
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.schedule import make_schedule
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

SIZE = 32  # side of the images in pixels; the autoencoder has two levels, so latents are 16 x 16
AUTOENCODER = AutoencoderConfig(block_out_channels=(32, 32), norm_num_groups=8, mid_block_attention=False)
TEXT = BertConfig(vocab_size=512, max_length=16, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
UNET = UNetConfig(
    block_out_channels=(64, 128),
    attention_layers=(0, 1),  # no attention on 16 x 16, one block on 8 x 8
    layers_per_block=1,
    num_attention_heads=4,
    cross_attention_dim=64,  # the width of the text encoder
    norm_num_groups=8,
)
# Predict v on a schedule that ends in pure noise, which is what sampling starts from (Lin et al. 2024).
DIFFUSION = DiffusionConfig.model_validate(
    {"schedule": {"kind": "scaled_linear", "zero_terminal_snr": True, "spacing": "trailing"}, "prediction": "v"}
)


def batches(source: Source, batch_size: int, steps: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield `steps` random batches: images (B, 3, H, W) in [-1, 1] and a caption of each."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        indices = random.integers(len(source), size=batch_size).tolist()
        images = to_tensor(np.stack([np.asarray(source.image(index)) for index in indices]))
        yield images, [str(random.choice(source.captions(index))) for index in indices]


def train_autoencoder(source: Source, batch_size: int, steps: int) -> tuple[Autoencoder, list[float]]:
    """Learn to compress images: reconstruction error plus a small KL divergence (Rombach et al. 2022, section 3.1)."""
    autoencoder = Autoencoder(AUTOENCODER)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    losses = []
    for images, _ in batches(source, batch_size, steps):
        posterior = autoencoder.encode(images)
        reconstructions = autoencoder.decode(posterior.sample())
        loss = (reconstructions - images).square().mean() + 1e-6 * posterior.kl().mean()
        losses.append(descend(optimizer, loss))
    # Diffusion assumes latents of unit variance: measure them once; encode and decode apply the result from now on.
    with torch.no_grad():
        images, _ = next(batches(source, 256, 1))
        z = autoencoder.encode(images).mode()  # (B, C, h, w), not scaled yet
    autoencoder.set_statistics(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    return autoencoder.requires_grad_(False), losses


def train_unet(
    source: Source, autoencoder: Autoencoder, tokenizer: Tokenizer, batch_size: int, steps: int
) -> tuple[UNet, TextEncoder, list[float]]:
    """Learn to remove noise from latents, with the text encoder trained along (Rombach et al. 2022, section 3.3)."""
    unet, text_encoder = UNet(UNET), make_text_encoder(TEXT.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    schedule, prediction = make_schedule(DIFFUSION.schedule), make_prediction(DIFFUSION.prediction)
    denoising_loss = DenoisingLoss(DIFFUSION)
    optimizer = torch.optim.AdamW([*unet.parameters(), *text_encoder.parameters()], lr=1e-3)
    losses = []
    for images, captions in batches(source, batch_size, steps):
        # Without its caption an image trains the unconditional model, which guidance needs (Ho and Salimans 2022).
        captions = [caption if torch.rand(()) > 0.1 else "" for caption in captions]
        latents = autoencoder.encode(images).sample()  # (B, C, h, w)
        level = schedule.sample(torch.rand(len(images)))  # one noise level an image
        noise = torch.randn_like(latents)
        context = text_encoder(*tokenizer(captions)).context  # (B, L, D)
        output = unet(level.noisy(latents, noise), level.t, context)
        target = prediction.target(latents, noise, level)
        losses.append(descend(optimizer, denoising_loss(output, target, level).mean()))
    return unet.eval(), text_encoder.eval(), losses


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one optimizer step and return the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def sample(
    prompts: list[str],
    autoencoder: Autoencoder,
    unet: UNet,
    text_encoder: TextEncoder,
    tokenizer: Tokenizer,
    steps: int = 30,
    guidance_scale: float = 3.0,
) -> np.ndarray:
    """Sample an image of each prompt, uint8 (B, H, W, 3)."""

    def condition(*contexts: Tensor) -> Denoiser:  # the guided denoiser runs several conditions in one batch
        context = torch.cat(contexts)
        return make_denoiser(lambda x, t: unet(x, t.expand(len(x)), context), prediction)

    prediction = make_prediction(DIFFUSION.prediction)
    positive = text_encoder(*tokenizer(prompts)).context
    negative = text_encoder(*tokenizer([""] * len(prompts))).context
    denoiser = classifier_free(condition, positive, negative, prediction, guidance_scale)
    grid = make_schedule(DIFFUSION.schedule).grid(steps)  # noise levels from pure noise to the image
    side = SIZE // AUTOENCODER.downsampling_factor
    x = grid.initial_scale * torch.randn(len(prompts), AUTOENCODER.latent_channels, side, side)
    for step in make_sampler("ddim")(denoiser, x, grid, torch.randn_like):
        x = step.x
    return to_bytes(autoencoder.decode(x))


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Train both stages, write a sheet of samples, and return the losses of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("minimal.png"))
    parser.add_argument("--images", type=int, default=2000, help="size of the data set")
    parser.add_argument("--autoencoder-steps", type=int, default=300)
    parser.add_argument("--unet-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    source = open_indexed("scenes", DataConfig(size=SIZE, scenes={"num": options.images, "concepts": 20}))
    captions = [caption for index in range(len(source)) for caption in source.captions(index)]
    tokenizer = Tokenizer.train(captions, TEXT.vocab_size, TEXT.max_length)
    autoencoder, first = train_autoencoder(source, options.batch_size, options.autoencoder_steps)
    print(f"autoencoder: loss {first[0]:.3f} -> {first[-1]:.3f}")
    unet, text_encoder, second = train_unet(source, autoencoder, tokenizer, options.batch_size, options.unet_steps)
    print(f"U-Net: loss {second[0]:.3f} -> {second[-1]:.3f}")
    prompts = ["a dog", "a pizza", "a red apple", "a cat on the beach"] * 2
    contact_sheet(sample(prompts, autoencoder, unet, text_encoder, tokenizer), columns=4).save(options.out)
    return {"autoencoder": first, "unet": second}


if __name__ == "__main__":
    main()
