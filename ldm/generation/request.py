"""A request for images: the only list of the options of a generation.

The options of `ldm generate`, `ldm interpolate` and `ldm evaluate`, the keywords of `TextToImage.__call__` and the
parameters that PNG files record derive from the fields of `Request`. This module imports no torch, so that `--help` is
fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.conditioning.size_conditioning import SizeConditioning as SizeConditioning
from ldm.errors import UserError
from ldm.generation.masks import as_mask, read_mask, scaled_to
from ldm.generation.option import (
    GUIDANCE,
    IMAGE,
    PROMPT,
    option,
    parse_dtype,
    parse_interval,
    parse_size,
    parse_timesteps,
    read_image,
    read_map,
)
from ldm.generation.quality import STRENGTH, check_quality

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ldm.conditioning.text.composition import Prompt
    from ldm.generation.guides import ClassifierGuidance, ClipGuidance

    Subject = Prompt | int | None  # a prompt, a class, or nothing for an unconditional model
else:
    Subject = Any

SYNTAXES = ("plain", "weighted", "a1111")  # of prompts; see `ldm.conditioning.text.prompt_weights`


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of a generation: `num_images` images for each prompt or class, with seeds `seed`, `seed + 1`, ...

    An image depends on its prompt and its seed, not on the batch that it is generated in.

    Raises:
        UserError: for invalid values and combinations.
    """

    prompts: tuple[Prompt, ...] = option((), "Text of the images.", record="")
    classes: tuple[int | str, ...] = option(
        (),
        "Class to generate, by number or name; repeatable.",
        list[str],
        flag="--class",
        group=PROMPT,
        parse=tuple,
        record="",
    )
    negative_prompt: str = option("", "Text to guide away from.", str, flag="--negative", group=PROMPT)
    negative_class: int | str | None = option(
        None, "Class to guide away from.", str, group=PROMPT, shown="the model's empty class"
    )
    prompt_syntax: str = option(
        "plain",
        "plain; weighted: (word:1.3) multiplies the word's embedding by 1.3; a1111: weighted with the mean kept.",
        str,
        group=PROMPT,
    )
    long_prompts: bool = option(
        False,
        "Encode prompts longer than the text encoder's limit in several windows instead of cutting them.",
        bool,
        group=PROMPT,
    )
    size_conditioning: SizeConditioning | None = option(None, "SDXL size and crop conditioning; None: the whole image.")
    aesthetic_score: float = option(6.0, "Aesthetic score of the images, for SDXL's refiner.", float, group=PROMPT)
    negative_aesthetic_score: float = option(
        2.5, "Aesthetic score to guide away from, for SDXL's refiner.", float, group=PROMPT
    )
    guidance_scale: float | None = option(
        None,
        "Classifier-free guidance scale; 1 is off.",
        float,
        flag="--cfg",
        group=GUIDANCE,
        shown="3; 1 for unconditional models",
    )
    image_guidance_scale: float | None = option(
        None,
        "Guidance scale of the image to edit (InstructPix2Pix); --cfg guides by the instruction.",
        float,
        flag="--image-cfg",
        group=GUIDANCE,
        shown="1.5",
    )
    guidance_rescale: float = option(
        0.0,
        "Share of the contrast added by guidance to remove, 0 to 1 (Lin et al. 2024).",
        float,
        flag="--cfg-rescale",
        group=GUIDANCE,
        shown="0, off",
    )
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Guide only at noise levels with LOW < sigma / alpha <= HIGH.",
        str,
        flag="--cfg-interval",
        group=GUIDANCE,
        metavar="LOW:HIGH",
        parse=parse_interval,
        shown="all levels",
    )
    threshold: float | None = option(
        None,
        "Dynamic thresholding: share of latents that are not clipped, such as 0.995 (Saharia et al. 2022).",
        float,
        group=GUIDANCE,
    )
    threshold_range: float | None = option(
        None, "Magnitude to which --threshold scales latents.", float, group=GUIDANCE, shown="3, pixels 1"
    )
    classifier: ClassifierGuidance | None = option(None, "Classifier guidance.", record="")
    clip: ClipGuidance | None = option(None, "CLIP guidance.", record="")
    quality: str = option(
        "exact",
        "Preset for options that are not given. exact: 30 steps of ddim; fast: 15 steps of unipc, in bfloat16 "
        "where that is fast; draft: 10. FID of the built-in model (240 images, features of EfficientNet-Lite0): 149.4, "
        "148.8, 149.4. See docs/presets.md.",
        str,
    )
    num_inference_steps: int | None = option(
        None, "Sampling steps.", int, flag="--steps", shown="30; fast 15, draft 10", record="steps"
    )
    sampler: str | None = option(
        None,
        "ddim, ddpm, ddpm-large, euler, euler-ancestral, heun, plms, dpmpp-2m, dpmpp-2m-sde, dpmpp-2s, dpmpp-sde, "
        "unipc, deis, lms, kdpm2, kdpm2-ancestral or lcm.",
        str,
        shown="ddim; fast and draft: unipc",
    )
    eta: float | None = option(
        None, "Share of fresh noise in a step, 0 to 1, for sampler ddim.", float, shown="the sampler's, 0 for ddim"
    )
    spacing: str | None = option(
        None, "leading, trailing, linspace, fractional, karras, exponential or beta.", str, shown="the model's"
    )
    timesteps: tuple[float, ...] | None = option(
        None,
        "Timesteps to sample at, such as 999,749,499,249, instead of --steps.",
        str,
        metavar="T,T,...",
        parse=parse_timesteps,
        shown="by --steps and --spacing",
    )
    deepcache: int = option(
        1, "DeepCache: compute the U-Net's deep features at every N-th step only.", int, metavar="N", shown="1, off"
    )
    seed: int = option(0, "Seed of the first image; the next images have the next seeds.", int, record="")
    num_images: int = option(1, "Images for each prompt.", int, flag="--num", minimum=1, record="")
    batch_size: int | None = option(None, "Images per batch.", int, shown="as many as fit the memory", record="")
    dtype: torch.dtype | None = option(
        None,
        "float32, bfloat16 or float16, for the U-Net and the decoder.",
        str,
        parse=parse_dtype,
        shown="float32; fast and draft: see --quality",
    )
    size: tuple[int, int] | None = option(
        None,
        "Width and height in pixels.",
        str,
        group=IMAGE,
        metavar="WxH",
        parse=parse_size,
        shown="the input image's, or the model's",
        record="",
    )
    image: Image.Image | None = option(
        None,
        "Image to start from, to inpaint, to vary or to upscale.",
        Path,
        group=IMAGE,
        metavar="FILE",
        parse=read_image,
    )
    reference: Image.Image | None = option(None, "Image to vary; None: `image`, for models of image variations.")
    strength: float | None = option(
        None,
        "Share of the steps to run from --image, 0 to 1.",
        float,
        group=IMAGE,
        shown=f"{STRENGTH}; 1 with --mask",
    )
    mask: Image.Image | None = option(
        None,
        "White, or opaque strokes on a transparent layer, where to regenerate --image.",
        Path,
        group=IMAGE,
        metavar="FILE",
        parse=read_mask,
    )
    layout: Image.Image | None = option(
        None,
        "Segmentation map: a PNG of class numbers, in grey or with a palette.",
        Path,
        group=IMAGE,
        metavar="FILE",
        parse=read_map,
    )

    def __post_init__(self) -> None:
        check_quality(self.quality)
        if self.mask is not None:
            mask = as_mask(self.mask)
            object.__setattr__(self, "mask", mask if self.image is None else scaled_to(mask, self.image))
        self._check_counts()
        self._check_sampling()
        self._check_guidance()
        self._check_image()

    def _check_counts(self) -> None:
        if self.prompts and self.classes and self.classifier is None:
            raise UserError("prompts and classes are given: leave one of them out, or add a classifier")
        if self.prompt_syntax not in SYNTAXES:
            raise UserError(f"no prompt syntax {self.prompt_syntax!r}: choose one of {', '.join(SYNTAXES)}")
        for name in ("num_inference_steps", "num_images", "batch_size", "deepcache"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if not 0 <= self.seed <= 2**63 - len(self.subjects) * self.num_images:
            raise UserError(f"seed {self.seed} is not between 0 and 2^63 - 1")

    def _check_sampling(self) -> None:
        from ldm.diffusion.grids import check_spacing, check_timesteps
        from ldm.diffusion.samplers import make_sampler

        make_sampler(self.sampler or "ddim", self.eta)
        check_spacing(self.spacing)
        if self.timesteps is None:
            return
        check_timesteps(self.timesteps)
        if self.spacing is not None:
            raise UserError(f"spacing {self.spacing} and timesteps are given: leave one of them out")
        if self.num_inference_steps not in (None, len(self.timesteps)):
            raise UserError(f"{self.num_inference_steps} steps, but {len(self.timesteps)} timesteps: leave one out")

    def _check_guidance(self) -> None:
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance scale {self.guidance_scale} is not a finite number")
        if self.image_guidance_scale is not None and not math.isfinite(self.image_guidance_scale):
            raise UserError(f"image guidance scale {self.image_guidance_scale} is not a finite number")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale {self.guidance_rescale} is not between 0 (off) and 1")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise UserError(f"guidance interval {low:g} to {high:g}: give two increasing values of sigma / alpha >= 0")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"threshold {self.threshold:g} is not above 0 and at most 1: a usual value is 0.995")
        if self.threshold_range is not None and self.threshold is None:
            raise UserError(f"threshold range {self.threshold_range:g} needs a threshold: give one")
        if self.threshold_range is not None and not 0 < self.threshold_range < math.inf:
            raise UserError(f"threshold range {self.threshold_range:g} is not above 0 and finite")
        if self.clip is not None and self.deepcache != 1:
            raise UserError(f"deepcache is {self.deepcache}, but CLIP guidance needs gradients: set deepcache to 1")
        if self.guidance_scale == 1:
            self._check_unguided()

    def _check_unguided(self) -> None:
        composed = any(not isinstance(prompt, str) for prompt in self.prompts)
        for name, given in (
            ("negative class", self.negative_class is not None),
            ("negative prompt", bool(self.negative_prompt) and not composed),
            ("guidance interval", self.guidance_interval is not None and not self.needs_gradients),
            ("guidance rescale", self.guidance_rescale > 0),
        ):
            if given:
                raise UserError(
                    f"a {name} needs guidance, which a guidance scale of 1 disables: give another guidance scale"
                )

    def _check_image(self) -> None:
        if self.image is None and (self.strength is not None or self.mask is not None):
            raise UserError("strength and mask need an image: give one")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UserError(f"strength {self.strength:g} is not above 0 (the image itself) and at most 1 (pure noise)")
        for name, other in (("layout", self.layout), ("mask", self.mask)):
            if self.image is not None and other is not None and other.size != self.image.size:
                (width, height), (other_width, other_height) = self.image.size, other.size
                raise UserError(
                    f"the {name} is {other_width}x{other_height}, the image {width}x{height}: they must be equal"
                )

    @property
    def needs_gradients(self) -> bool:
        """Whether guidance needs gradients while sampling."""
        return self.classifier is not None or self.clip is not None

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The prompts, the classes, or one None for an unconditional model."""
        return self.prompts or self.classes or (None,)

    @property
    def images(self) -> list[tuple[Subject, int]]:
        """Subject and seed of each image, in order."""
        subjects = [subject for subject in self.subjects for _ in range(self.num_images)]
        return [(subject, self.seed + number) for number, subject in enumerate(subjects)]
