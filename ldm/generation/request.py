"""What to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image

from ldm.conditioning.text.composition import Composed, Prompt
from ldm.diffusion.grids import check_spacing, check_timesteps
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers import make_sampler
from ldm.errors import UserError
from ldm.generation.quality import preset

if TYPE_CHECKING:
    from ldm.generation.guides import ClassifierGuidance, ClipGuidance

Subject = Prompt | int | None  # a prompt, a class, or nothing
SYNTAXES = ("plain", "weighted", "a1111")  # of prompts; `ldm.conditioning.text.prompt_weights` has that of the last two


class SizeConditioning(NamedTuple):
    """Which part of another image the image seems to be (Podell et al. 2023, section 2.2); sizes in pixels."""

    original: tuple[int, int] | None = None  # width and height of that other image; None: the image's own
    corner: tuple[int, int] = (0, 0)  # left and top of the part
    target: tuple[int, int] | None = None  # width and height of the part; None: the image's own

    def sizes(self, size: tuple[int, int]) -> list[int]:
        """What models are told, heights and tops first, for a picture of `size`, width and height."""
        return [side for pair in (self.original or size, self.corner, self.target or size) for side in pair[::-1]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw: `num_images` images of each prompt or class; raises UserError for values that mean nothing.

    The images have the seeds `seed`, `seed + 1`, ... in order. An image depends on its prompt and its seed, not on
    what is drawn beside it.
    """

    prompts: tuple[Prompt, ...] = ()
    negative_prompt: str = ""
    prompt_syntax: str = "plain"  # weighted: `(word:1.3)` multiplies tokens; a1111: and a window keeps its mean
    long_prompts: bool = False  # read in as many windows of the text encoder as they need, instead of cut to one
    classes: tuple[int | str, ...] = ()  # numbers or names, instead of prompts, or what a classifier leads to
    negative_class: int | str | None = None  # what to guide away from there; None: its empty class, if it has one
    size_conditioning: SizeConditioning | None = (
        None  # for a model that was told sizes and crops; None: the whole image
    )
    guidance_scale: float | None = None  # 1: off; None: 3 where there is something to guide away from
    guidance_rescale: float = 0.0  # 0: off (Lin et al. 2024, section 3.4)
    quality: str = "exact"  # what else is chosen for the options that leave it so; see `ldm.generation.quality`
    num_inference_steps: int | None = None  # None: the quality's
    spacing: str | None = None  # of the levels that are visited; None: the model's own
    timesteps: tuple[float, ...] | None = None  # these levels, falling, instead of a number and a spacing
    num_images: int = 1
    seed: int = 0
    sampler: str | None = None  # None: the quality's, or ddim with an eta
    eta: float | None = None  # for ddim alone; None: that of the sampler
    deepcache: int | None = None  # of so many steps one computes the U-Net's deep features; 1: all; None: the quality's
    dtype: torch.dtype | None = None  # U-Net and decoder compute in it; None: that of their weights, or the quality's
    size: tuple[int, int] | None = None  # width, height in pixels; None: the image's, or what the model was trained on
    image: Image.Image | None = None  # to start from, noised to `strength`, instead of from noise alone
    reference: Image.Image | None = None  # to vary, for a model that was made for it; None there: the image
    strength: float | None = None  # share of the steps taken from there; None: 0.8, or 1 with a mask
    mask: Image.Image | None = None  # white where the image is to be drawn anew, black where it stays
    layout: Image.Image | None = None  # classes of the pixels, for a model of such maps
    guidance_interval: tuple[float, float] | None = None  # sigma / alpha between which to guide; None: the quality's
    threshold: float | None = None  # share of the numbers of x0 that are not cut (Saharia et al. 2022); None: off
    threshold_range: float | None = None  # what x0 is brought within; None: that of usual latents
    classifier: ClassifierGuidance | None = None
    clip: ClipGuidance | None = None
    batch_size: int | None = None  # images drawn at a time; None: as many as memory is thought to hold

    def __post_init__(self) -> None:
        preset(self.quality)
        make_sampler(self.sampler or "ddim", self.eta)
        self._check_levels()
        if self.prompts and self.classes and self.classifier is None:
            raise UserError("give prompts or classes, not both")
        if self.prompt_syntax not in SYNTAXES:
            raise UserError(f"no prompt syntax {self.prompt_syntax!r}: it is one of {', '.join(SYNTAXES)}")
        for name in ("num_inference_steps", "num_images", "batch_size", "deepcache"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if not 0 <= self.seed <= 2**63 - len(self.subjects) * self.num_images:
            raise UserError(f"seed {self.seed} is not between 0 and 2^63 - 1")
        self._check_guidance()
        self._check_image()

    def _check_guidance(self) -> None:
        composed = any(isinstance(prompt, Composed) for prompt in self.prompts)
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance scale {self.guidance_scale} is not a number to multiply by")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale {self.guidance_rescale} is not between 0 (off) and 1")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise UserError(f"guidance interval {low:g} to {high:g}: give two rising values of sigma / alpha from 0 on")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"threshold {self.threshold:g} is not above 0 and up to 1: usual is 0.995")
        if self.threshold_range is not None and self.threshold is None:
            raise UserError("a threshold range says what the threshold brings images within: give a threshold")
        if self.threshold_range is not None and not 0 < self.threshold_range < math.inf:
            raise UserError(f"threshold range {self.threshold_range:g} is not above 0")
        if self.clip is not None and self.deepcache not in (None, 1):
            raise UserError(
                f"CLIP guidance needs the gradient of the whole U-Net: deepcache is 1, not {self.deepcache}"
            )
        besides = self.classifier is not None or self.clip is not None
        for name, asked in (
            ("negative class", self.negative_class is not None),
            ("negative prompt", bool(self.negative_prompt) and not composed),
            ("guidance interval", self.guidance_interval is not None and not besides),
            ("guidance rescale", self.guidance_rescale > 0),
        ):
            if asked and self.guidance_scale == 1:
                raise UserError(f"a {name} needs guidance: give a guidance scale other than 1, which is off")

    def _check_image(self) -> None:
        if self.image is not None and self.layout is not None and self.layout.size != self.image.size:
            (width, height), (given_width, given_height) = self.image.size, self.layout.size
            raise UserError(
                f"the layout is {given_width}x{given_height}, the image {width}x{height}: they must be equal"
            )
        if self.image is None and (self.strength is not None or self.mask is not None):
            raise UserError("strength and mask say what is to be done with an image: give one")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UserError(f"strength {self.strength:g} is not above 0 (the image as it is) and up to 1 (all noise)")
        if self.image is not None and self.mask is not None and self.mask.size != self.image.size:
            (width, height), (given_width, given_height) = self.image.size, self.mask.size
            raise UserError(f"the mask is {given_width}x{given_height}, the image {width}x{height}: they must be equal")

    def _check_levels(self) -> None:
        check_spacing(self.spacing)
        if self.timesteps is None:
            return
        check_timesteps(self.timesteps)
        if self.spacing is not None:
            raise UserError(f"spacing {self.spacing} says nothing where timesteps are given: leave one of them out")
        if self.num_inference_steps not in (None, len(self.timesteps)):
            raise UserError(f"{self.num_inference_steps} steps, but {len(self.timesteps)} timesteps: leave one out")

    @property
    def steps(self) -> int:
        """How many levels a whole grid has: those that are given, their number, or the quality's."""
        return len(self.timesteps or ()) or self.num_inference_steps or preset(self.quality).num_inference_steps

    @property
    def given_strength(self) -> float:
        """How much of an image is drawn anew: where a mask says which part, all of that part unless told otherwise."""
        if self.strength is not None:
            return self.strength
        return 0.8 if self.mask is None else 1.0

    def taken(self, grid: Grid) -> Grid:
        """The steps of a grid that are taken: the last ones, by `strength`, from an image, else all of them.

        Raises UserError when that is none.
        """
        if self.image is None:
            return grid
        steps = min(int(len(grid) * self.given_strength), len(grid))  # as diffusers counts them
        if steps < 1:
            raise UserError(f"strength {self.given_strength:g} leaves nothing of {len(grid)} steps: raise either")
        return grid.last(steps)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What is drawn: the prompts, the classes, or the one that has no name."""
        return self.prompts or self.classes or (None,)

    def labels(self, subjects: Sequence[Subject]) -> list[int]:
        """The class that a classifier leads each of these to: itself, or the one that goes with all prompts."""
        return [subject if isinstance(subject, int) else int(self.classes[0]) for subject in subjects]

    @property
    def images(self) -> list[tuple[Subject, int]]:
        """Subject and seed of each image, in order."""
        subjects = [subject for subject in self.subjects for _ in range(self.num_images)]
        return [(subject, self.seed + number) for number, subject in enumerate(subjects)]
