"""Classes of pipelines in diffusers' layout: their parts, folders and assumptions, as in `model_index.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_class, scheduler_classes
from ldm.checkpoint.families import class_family
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import Part
from ldm.conditioning.classes import EMPTY, NAMES
from ldm.conditioning.fit import all_conditionings
from ldm.conditioning.spatial import MASK, PIXELS
from ldm.conditioning.text.conditioning import ZEROS
from ldm.errors import UserError
from ldm.models.autoencoder.fields import Statistics, diffusers_classes
from ldm.registry import DENOISERS
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, refused
from ldm.storage.renames import current_index

KL, CONDITIONAL, PLAIN = ((("diffusers", name),) for name in ("AutoencoderKL", "UNet2DConditionModel", "UNet2DModel"))
BERT, CLIP, T5 = (("transformers", name) for name in ("BertModel", "CLIPTextModel", "T5EncoderModel"))
POOLED = ("transformers", "CLIPTextModelWithProjection")
VISION = ("transformers", "CLIPVisionModelWithProjection")
LDM_BERT = ("latent_diffusion", "LDMBertModel")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # do not affect the generated images
LAST: Fields = {"layer": "last", "final_norm": True, "projection_dim": None}
PENULTIMATE: Fields = {"layer": "penultimate", "final_norm": False}
FOLDERS = {"autoencoder": "vae", "classes": "class_embedder", "processor": "feature_extractor"}  # others: as the part


@dataclass(frozen=True)
class Layout:
    """A class of pipeline."""

    conditionings: frozenset[str] | None  # exactly these; None: any
    folders: Mapping[str, str]  # part -> folder, in the order of `model_index.json`
    kinds: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)  # part -> classes, if not all known ones
    options: Mapping[str, Fields] = field(default_factory=dict)  # part -> options of its section that the class implies
    fields: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # further fields: supported values, default first
    facts: frozenset[str] = frozenset()  # further fields that conditionings read and write
    ignored: tuple[str, ...] = ()  # parts that do not affect the images
    statistics: Statistics = "factor"  # fields of the autoencoder's latent statistics that the class uses
    implied: str | None = None  # a conditioning without parts that the class implies
    absent: tuple[str, ...] = ()  # folders of other layouts that this one must not have
    read: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # supported values of fields that are not written
    optional: frozenset[str] = frozenset()  # conditionings without parts or fields that the class supports
    accepts: Callable[[Pipeline], bool] = lambda pipeline: True  # further assumptions

    def expresses(self, pipeline: Pipeline, parts: Mapping[str, Part]) -> bool:
        """Return whether a pipeline of this class generates the same images."""
        if self.conditionings is not None:
            own = {part for each in pipeline.conditionings.values() if each.name == self.implied for part in each.parts}
            parts = {part: kind for part, kind in parts.items() if part not in own}
            found = set(pipeline.conditionings) - self.optional
            if found != self.conditionings - self.optional or parts.keys() != self.folders.keys():
                return False
        known = known_parts()
        if any(kind not in self.kinds.get(part, known[part]) for part, kind in parts.items()):
            return False
        if _facts(pipeline).keys() - self.fields.keys() - self.facts:
            return False
        return self.accepts(pipeline) and all(each.matches(self.options) for each in pipeline.conditionings.values())


def _leaves_unscaled(pipeline: Pipeline) -> bool:
    """Whether the scheduler leaves the network's input unscaled, with one output; these classes assume both."""
    unscaled = scheduler_class(pipeline.diffusion) in ("DDIMScheduler", "DDPMScheduler")
    return unscaled and not pipeline.diffusion.learned_variance


def _is_latent_text(pipeline: Pipeline) -> bool:
    return pipeline.autoencoder.config.downsampling_factor == 8 and _leaves_unscaled(pipeline)


def _is_super_resolution(pipeline: Pipeline) -> bool:
    """That class decodes unscaled latents, and concatenates as many channels as an image has."""
    config = pipeline.autoencoder.config
    plain = config.scaling_factor in (1, None) and config.shift_factor in (0, None)
    halves = config.latent_channels == PIXELS and pipeline.denoiser.config.in_channels == 2 * PIXELS
    return plain and halves and _leaves_unscaled(pipeline)


def _sees_mask(pipeline: Pipeline) -> bool:
    return bool(pipeline.denoiser.config.in_channels == 4 + MASK + 4)


def _sees_image(pipeline: Pipeline) -> bool:
    """Whether the latents of an image are concatenated, which these classes do not scale or shift."""
    return bool(pipeline.denoiser.config.in_channels == 4 + 4)


def _numbers(pipeline: Pipeline) -> int | None:
    """How many numbers SDXL's U-Nets embed: six, or the refiner five."""
    text: Any = pipeline.conditionings["text"]
    return text.added_numbers(pipeline.denoiser.config)


def _folders(**names: str) -> dict[str, str]:
    return names | {"unet": "unet", "scheduler": "scheduler"}


_TEXT = {"text_encoder": "text_encoder", "tokenizer": "tokenizer"}
_TWO_TEXTS = {name + end: name + end for name in _TEXT for end in ("", "_2")}
_SD_KINDS = {"autoencoder": KL, "unet": CONDITIONAL, "text_encoder": (BERT, CLIP, T5)}
_CHECKER = {"requires_safety_checker": (False, True, None)}
_XL_KINDS = {"autoencoder": KL, "unet": CONDITIONAL, "text_encoder": (CLIP,), "text_encoder_2": (POOLED,)}
_XL_OPTIONS = {"text_encoder": PENULTIMATE | {"projection_dim": None}, "text_encoder_2": PENULTIMATE}
_XL_FIELDS = {ZEROS: (True, False), "add_watermarker": (None, False)}
_XL_IMAGES = ("image_encoder", "feature_extractor")
_NO_SCORE = {"requires_aesthetics_score": (False,)}
_GUIDANCE = frozenset({"guidance"})

_SD = Layout(
    frozenset({"text"}),
    _folders(autoencoder="vae", **_TEXT),
    kinds=_SD_KINDS,
    options={"text_encoder": LAST},
    fields=_CHECKER,
    ignored=OPTIONAL,
    optional=_GUIDANCE,
)
_XL = Layout(
    frozenset({"text"}),
    _folders(autoencoder="vae", **_TWO_TEXTS),
    kinds=_XL_KINDS,
    options=_XL_OPTIONS,
    fields=_XL_FIELDS,
    read=_NO_SCORE,
    ignored=_XL_IMAGES,
    statistics="channels",
    optional=_GUIDANCE,
    accepts=lambda pipeline: _numbers(pipeline) == 6,
)


def _with_image(layout: Layout, kind: str, sees: Callable[[Pipeline], bool], **changes: Any) -> Layout:
    """Return the layout of the same model with a spatial conditioning that follows from the class."""
    accepts = layout.accepts
    return replace(
        layout,
        conditionings=frozenset({"text", kind}),
        implied=kind,
        accepts=lambda pipeline: sees(pipeline) and accepts(pipeline),
        **changes,
    )


_EDIT: dict[str, Any] = {"optional": frozenset()}
_XL_EDIT = _EDIT | {"fields": _XL_FIELDS | {"is_cosxl_edit": (False,)}, "read": {}, "ignored": ()}

LAYOUTS: dict[str, Layout] = {  # the first that expresses a pipeline is what is written
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _with_image(_SD, "inpainting", _sees_mask),
    "StableDiffusionInstructPix2PixPipeline": _with_image(_SD, "image_edit", _sees_image, **_EDIT),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLInpaintPipeline": _with_image(_XL, "inpainting", _sees_mask),
    "StableDiffusionXLInstructPix2PixPipeline": _with_image(_XL, "image_edit", _sees_image, **_XL_EDIT),
    "StableDiffusionXLImg2ImgPipeline": Layout(  # the refiner
        frozenset({"text"}),
        _folders(autoencoder="vae", text_encoder="text_encoder_2", tokenizer="tokenizer_2"),
        kinds={"autoencoder": KL, "unet": CONDITIONAL, "text_encoder": (POOLED,)},
        options={"text_encoder": PENULTIMATE},
        fields={ZEROS: (False, True), "add_watermarker": (None, False), "requires_aesthetics_score": (True,)},
        ignored=_XL_IMAGES,
        statistics="channels",
        absent=("text_encoder", "tokenizer"),
        accepts=lambda pipeline: _numbers(pipeline) == 5,
    ),
    "StableDiffusionImageVariationPipeline": Layout(
        frozenset({"image"}),
        _folders(autoencoder="vae", image_encoder="image_encoder", processor="feature_extractor"),
        kinds={"autoencoder": KL, "unet": CONDITIONAL, "image_encoder": (VISION,)},
        fields=_CHECKER,
        ignored=("safety_checker",),
    ),
    "LDMTextToImagePipeline": Layout(
        frozenset({"text"}),
        _folders(autoencoder="vqvae", text_encoder="bert", tokenizer="tokenizer"),
        kinds={"unet": CONDITIONAL, "text_encoder": (LDM_BERT, BERT)},
        options={"text_encoder": LAST | {"use_attention_mask": False, "max_length": 77}},
        accepts=_is_latent_text,
    ),
    "LDMPipeline": Layout(frozenset({"unconditional"}), _folders(autoencoder="vqvae"), kinds={"unet": PLAIN}),
    "LDMSuperResolutionPipeline": Layout(
        frozenset({"low_resolution"}),
        _folders(autoencoder="vqvae"),
        kinds={"unet": PLAIN},
        implied="low_resolution",
        statistics="none",
        accepts=_is_super_resolution,
    ),
    "DDPMPipeline": Layout(frozenset({"unconditional"}), _folders(), kinds={"unet": PLAIN}, accepts=_leaves_unscaled),
    "LatentDiffusionPipeline": Layout(  # our own; diffusers loads its parts one by one
        None, {}, fields={ZEROS: (False, True)}, facts=frozenset({NAMES, EMPTY}), statistics="all"
    ),
}
# Classes of diffusers with the components of another class, which differ in what they do with them.
SAME_COMPONENTS = {
    **dict.fromkeys(
        (
            "StableDiffusionImg2ImgPipeline",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
            "StableDiffusionInpaintPipelineLegacy",
            "StableDiffusionPAGPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionPanoramaPipeline",
            "StableDiffusionSAGPipeline",
            "StableDiffusionAttendAndExcitePipeline",
            "StableDiffusionModelEditingPipeline",
            "StableDiffusionParadigmsPipeline",
            "CycleDiffusionPipeline",
            "TextToVideoZeroPipeline",
        ),
        "StableDiffusionPipeline",
    ),
    "StableDiffusionXLPAGPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "TextToVideoZeroSDXLPipeline": "StableDiffusionXLPipeline",
    "DDIMPipeline": "DDPMPipeline",
    "PNDMPipeline": "DDPMPipeline",
}


def known_parts() -> dict[str, tuple[Part, ...]]:
    """Return the names of all components of pipelines, each with its loadable (library, class) pairs."""
    found = {
        "autoencoder": tuple(("diffusers", name) for name in diffusers_classes()),
        "unet": tuple(part for each in DENOISERS.values() for part in each.parts()),
        "scheduler": tuple(("diffusers", name) for name in scheduler_classes()),
    }
    return found | {name: kinds for each in all_conditionings() for name, kinds in each.known_parts().items()}


def network_parts(pipeline: Pipeline) -> dict[str, Part]:
    """Return library and class of each network, as it is written."""
    denoiser = pipeline.denoiser
    found = {"unet": (denoiser.library, denoiser.class_name(denoiser.config))}
    if (name := pipeline.autoencoder.config.bottleneck.diffusers_class) is not None:
        found["autoencoder"] = ("diffusers", name)
    return found | {name: part for each in pipeline.conditionings.values() for name, part in each.parts.items()}


def pipeline_class(pipeline: Pipeline) -> str:
    """Return the class of pipeline that a pipeline is written as."""
    parts = _parts(pipeline)
    return next(name for name, layout in LAYOUTS.items() if layout.expresses(pipeline, parts))


def _parts(pipeline: Pipeline) -> dict[str, Part]:
    return network_parts(pipeline) | {"scheduler": ("diffusers", scheduler_class(pipeline.diffusion))}


def _facts(pipeline: Pipeline) -> Fields:
    return {name: value for each in pipeline.conditionings.values() for name, value in each.facts.items()}


def folders_of(layout: Layout, parts: Mapping[str, Part]) -> dict[str, str]:
    """Return the folder of each part."""
    return dict(layout.folders) or {part: FOLDERS.get(part, part) for part in parts}


def make_index(pipeline: Pipeline) -> Fields:
    """Return `model_index.json` of a pipeline."""
    name, parts = pipeline_class(pipeline), _parts(pipeline)
    layout = LAYOUTS[name]
    values = {option: allowed[0] for option, allowed in layout.fields.items()} | _facts(pipeline)
    if ZEROS in layout.fields:
        values[ZEROS] = _facts(pipeline).get(ZEROS, False)
    return {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **{folder: list(parts[part]) for part, folder in folders_of(layout, parts).items() if part in parts},
        **{part: [None, None] for part in (*layout.absent, *layout.ignored)},
        **values,
    }


def read_index(index: Fields, where: Path) -> tuple[Layout, dict[str, Part], dict[str, Path], Fields]:
    """Return layout, class and folder of each part, and further fields of a `model_index.json`.

    Raises:
        UserError: for a class, part or field that is not supported.
    """
    index, old_folders = current_index(index)
    layout, parts, known = _layout_of(index, where), {}, known_parts()
    folders = folders_of(layout, dict.fromkeys(known, ("", "")))
    for part, folder in folders.items():
        found, allowed = index.get(folder), layout.kinds.get(part, known[part])
        if not layout.folders and found in (None, [None, None]):
            continue
        if found not in [list(kind) for kind in allowed]:
            classes = " or ".join(dict.fromkeys(kind for _, kind in allowed))
            raise UserError(f"{where}: the part {folder} is {found}: ldm loads {classes}")
        parts[part] = (found[0], found[1])
    for option, value in index.items():
        allowed_values = {**layout.fields, **layout.read}.get(option)
        if allowed_values is not None and value not in allowed_values:
            raise refused(option, value, where)
        supported = {*folders.values(), *layout.fields, *layout.read, *layout.facts, *layout.ignored, *layout.absent}
        if option not in supported and not option.startswith("_"):
            raise UserError(f"{where}: the part {option} is not supported")
    places = {part: where.parent / old_folders.get(folders[part], folders[part]) for part in parts}
    return layout, parts, places, {option: allowed[0] for option, allowed in layout.fields.items()} | index


def _layout_of(index: Fields, where: Path) -> Layout:
    """Return the layout of a class, or of another class with the same parts if there is a part that must be absent."""
    name = index.get("_class_name")
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None or any(index.get(part) not in (None, [None, None]) for part in layout.absent):
        layout = LAYOUTS.get(SAME_COMPONENTS.get(str(name), ""), layout)
    if layout is None:
        family = class_family(name)
        of = f", which belongs to the family {family}" if family else ""
        raise UserError(f"{where} describes a {name}{of}: ldm loads {', '.join(LAYOUTS)}")
    return layout
