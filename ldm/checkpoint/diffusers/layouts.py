"""Which class of pipeline stands for which parts, and in which folders: what `model_index.json` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.checkpoint.class_tables import EMPTY, NAMES, class_facts
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_class, scheduler_classes
from ldm.checkpoint.parts import Parts
from ldm.checkpoint.spatial import MASK, PIXELS
from ldm.conditioning.image.files import CLIP_CLASS, OWN_CLASS
from ldm.conditioning.text.encoder import TextEncoder, TextSection
from ldm.conditioning.text.files import saved_config
from ldm.conditioning.text.format import architecture
from ldm.conditioning.text.tokenizer_files import tokenizer_class
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.errors import UserError
from ldm.models.autoencoder.fields import diffusers_classes
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, refused

Kind = tuple[str, str]  # library and class

AUTOENCODER_KL: Kind = ("diffusers", "AutoencoderKL")
UNETS: dict[str, Kind] = {"transformer": ("diffusers", "UNet2DConditionModel"), "plain": ("diffusers", "UNet2DModel")}
BERT, LDM_BERT, T5 = (
    ("transformers", "BertModel"),
    ("latent_diffusion", "LDMBertModel"),
    ("transformers", "T5EncoderModel"),
)
CLIP, PROJECTED = ("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")
TEXTS = (BERT, CLIP, PROJECTED, T5, LDM_BERT)
TOKENIZERS = ("BertTokenizer", "CLIPTokenizer", "T5Tokenizer")
ANY_TOKENIZER = tuple(("transformers", name + end) for name in TOKENIZERS for end in ("", "Fast"))
ANY: dict[str, tuple[Kind, ...]] = {  # where a layout does not say
    "autoencoder": tuple(("diffusers", name) for name in diffusers_classes()),
    "unet": tuple(UNETS.values()),
    "text_encoder": TEXTS,
    "text_encoder_2": TEXTS,
    "tokenizer": ANY_TOKENIZER,
    "tokenizer_2": ANY_TOKENIZER,
    "classes": (("ldm", "ClassEmbedder"),),
    "image_encoder": (("ldm", OWN_CLASS), ("transformers", CLIP_CLASS)),
    "processor": (("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor")),
    "spatial": (("ldm", "SpatialRescaler"), ("ldm", "SpatialIdentity")),
}
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # they say nothing about the images drawn
ZEROS = "force_zeros_for_empty_prompt"
WHOLE: Fields = {"layer": "last", "final_norm": True, "projection_dim": None}
INSIDE: Fields = {"layer": "penultimate", "final_norm": False}


@dataclass(frozen=True)
class Layout:
    """A class of pipeline: its parts, and what it takes for granted about them."""

    folders: dict[str, str]  # our part -> its folder, in the order of model_index.json
    kinds: dict[str, tuple[Kind, ...]] = field(default_factory=dict)  # our part -> what may stand there, if not ANY
    texts: dict[str, Fields] = field(default_factory=dict)  # text encoder -> options that the class decides
    fields: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # fields that are no parts, the default first
    facts: tuple[str, ...] = ()  # fields that `class_tables` reads and writes
    nothing: tuple[str, ...] = ()  # parts that mean nothing to us
    may_lack: tuple[str, ...] = ()  # parts of ours that need not be there
    joins: str | None = None  # kind of the image that the class brings beside the latents, with no part for it
    limit: Callable[[Parts], bool] = lambda parts: True  # what else it takes for granted

    def expresses(self, parts: Parts, kinds: dict[str, Kind]) -> bool:
        """Whether a pipeline of this class draws what the parts draw."""
        if self.joins is not None:
            if parts.spatial is None or parts.spatial.config.kind != self.joins:
                return False
            kinds = {part: kind for part, kind in kinds.items() if part != "spatial"}
        if not self.folders.keys() - set(self.may_lack) <= kinds.keys() <= self.folders.keys():
            return False
        if any(kind not in self.allowed(part) for part, kind in kinds.items()):
            return False
        if parts.zeros_for_empty_prompt and ZEROS not in self.fields:
            return False
        saved = {f"text_encoder{end}": saved_config(encoder.config) for encoder, _, end in _texts(parts)}
        return self.limit(parts) and all(self.text_config(part, config) == config for part, config in saved.items())

    def allowed(self, part: str) -> tuple[Kind, ...]:
        """Library and class of the parts that the layout may hold."""
        if part == "scheduler":
            return tuple(("diffusers", name) for name in scheduler_classes())
        return self.kinds.get(part, ANY[part])

    def text_config(self, part: str, config: TextSection) -> TextSection:
        """The section of a text encoder with what the class decides about it."""
        decided = {name: value for name, value in self.texts.get(part, {}).items() if name in type(config).model_fields}
        return config.model_copy(update=decided)


def _as_latent_text_pipeline(parts: Parts) -> bool:
    """That class knows no other factor, and does not scale its input as the schedulers between timesteps ask."""
    return parts.autoencoder.config.downsampling_factor == 8 and scheduler_class(parts.diffusion) == "DDIMScheduler"


def _as_super_resolution_pipeline(parts: Parts) -> bool:
    """That class decodes latents as they are, and takes as many channels of them as the small image has."""
    config = parts.autoencoder.config
    plain = config.scaling_factor in (1, None) and config.shift_factor in (0, None)
    halves = config.latent_channels == PIXELS and parts.unet.config.in_channels == 2 * PIXELS
    return plain and halves and parts.num_classes is None and scheduler_class(parts.diffusion) == "DDIMScheduler"


def _as_pixel_pipeline(parts: Parts) -> bool:
    """That class is told no classes, knows no variances, and does not scale its input as some schedulers ask."""
    plain = parts.num_classes is None and not parts.diffusion.learned_variance
    return plain and scheduler_class(parts.diffusion) == "DDIMScheduler"


def _folders(**names: str) -> dict[str, str]:
    return names | {"unet": "unet", "scheduler": "scheduler"}


_TEXT = {"text_encoder": "text_encoder", "tokenizer": "tokenizer"}
_TWO_TEXTS = {name + end: name + end for name in _TEXT for end in ("", "_2")}

LAYOUTS: dict[str, Layout] = {  # the first that expresses some parts is what is written
    "StableDiffusionPipeline": Layout(
        _folders(autoencoder="vae", **_TEXT),
        kinds={"autoencoder": (AUTOENCODER_KL,), "unet": (UNETS["transformer"],), "text_encoder": (BERT, CLIP, T5)},
        texts={"text_encoder": WHOLE},
        fields={"requires_safety_checker": (False, True)},
        nothing=OPTIONAL,
    ),
    "StableDiffusionInpaintPipeline": Layout(
        _folders(autoencoder="vae", **_TEXT),
        kinds={"autoencoder": (AUTOENCODER_KL,), "unet": (UNETS["transformer"],), "text_encoder": (BERT, CLIP, T5)},
        texts={"text_encoder": WHOLE},
        fields={"requires_safety_checker": (False, True)},
        nothing=OPTIONAL,
        joins="inpainting",
        limit=lambda parts: parts.unet.config.in_channels == 4 + MASK + 4,  # other numbers are refused there
    ),
    "StableDiffusionXLPipeline": Layout(
        _folders(autoencoder="vae", **_TWO_TEXTS),
        kinds={
            "autoencoder": (AUTOENCODER_KL,),
            "unet": (UNETS["transformer"],),
            "text_encoder": (CLIP,),
            "text_encoder_2": (PROJECTED,),
        },
        texts={"text_encoder": INSIDE | {"projection_dim": None}, "text_encoder_2": INSIDE},
        fields={ZEROS: (True, False), "add_watermarker": (None, False)},
        nothing=("image_encoder", "feature_extractor"),
        limit=lambda parts: parts.unet.config.addition_embed_type is not None,
    ),
    "StableDiffusionImageVariationPipeline": Layout(
        _folders(autoencoder="vae", image_encoder="image_encoder", processor="feature_extractor"),
        kinds={
            "autoencoder": (AUTOENCODER_KL,),
            "unet": (UNETS["transformer"],),
            "image_encoder": (("transformers", CLIP_CLASS),),
        },
        fields={"requires_safety_checker": (False, True)},
        nothing=("safety_checker",),
    ),
    "LDMTextToImagePipeline": Layout(
        _folders(autoencoder="vqvae", text_encoder="bert", tokenizer="tokenizer"),
        kinds={"unet": (UNETS["transformer"],), "text_encoder": (LDM_BERT, BERT)},
        texts={"text_encoder": WHOLE | {"use_attention_mask": False, "max_length": 77}},
        limit=_as_latent_text_pipeline,
    ),
    "LDMPipeline": Layout(
        _folders(autoencoder="vqvae"),
        kinds={"unet": (UNETS["plain"],)},
        limit=lambda parts: parts.num_classes is None,
    ),
    "LDMSuperResolutionPipeline": Layout(
        _folders(autoencoder="vqvae"),
        kinds={"unet": (UNETS["plain"],)},
        joins="low_resolution",
        limit=_as_super_resolution_pipeline,
    ),
    "DDPMPipeline": Layout(  # without an autoencoder: on pixels
        _folders(),
        kinds={"unet": (UNETS["plain"],)},
        limit=_as_pixel_pipeline,
    ),
    "LatentDiffusionPipeline": Layout(  # ours: diffusers loads its parts singly
        _folders(
            autoencoder="vae",
            **_TWO_TEXTS,
            classes="class_embedder",
            image_encoder="image_encoder",
            processor="feature_extractor",
            spatial="spatial",
        ),
        fields={ZEROS: (False, True)},
        facts=(NAMES, EMPTY),
        may_lack=("autoencoder", *_TWO_TEXTS, "classes", "image_encoder", "processor", "spatial"),
    ),
}


def network_kinds(parts: Parts) -> dict[str, Kind]:
    """Library and class of each network that is there, as it is written."""
    found = {"unet": UNETS[parts.unet.config.attention]}
    if (name := parts.autoencoder.config.bottleneck.diffusers_class) is not None:
        found["autoencoder"] = ("diffusers", name)
    for encoder, _, end in _texts(parts):
        name = architecture(saved_config(encoder.config))
        found[f"text_encoder{end}"] = next(kind for kind in TEXTS if kind[1] == name)
    if parts.classes is not None:
        found["classes"] = ANY["classes"][0]
    if parts.image_encoder is not None:
        name = {"own": OWN_CLASS, "clip": CLIP_CLASS}[parts.image_encoder.config.kind]
        found["image_encoder"] = next(kind for kind in ANY["image_encoder"] if kind[1] == name)
    if parts.spatial is not None:
        found["spatial"] = ("ldm", type(parts.spatial).__name__)
    return found


def pipeline_class(parts: Parts) -> str:
    """The class of pipeline that some parts are written as."""
    kinds = _kinds(parts)
    return next(name for name, layout in LAYOUTS.items() if layout.expresses(parts, kinds))


def _kinds(parts: Parts) -> dict[str, Kind]:
    tokenizers = {
        f"tokenizer{end}": ("transformers", tokenizer_class(tokenizer)) for _, tokenizer, end in _texts(parts)
    }
    found = network_kinds(parts) | tokenizers | {"scheduler": ("diffusers", scheduler_class(parts.diffusion))}
    if found.get("image_encoder") == ("transformers", CLIP_CLASS):
        found["processor"] = ANY["processor"][0]
    return found


def _texts(parts: Parts) -> list[tuple[TextEncoder, Tokenizer, str]]:
    return [(encoder, tokenizer, end) for (encoder, tokenizer), end in zip(parts.texts, ("", "_2"), strict=False)]


def make_index(parts: Parts) -> Fields:
    """`model_index.json` of the parts."""
    name, kinds = pipeline_class(parts), _kinds(parts)
    layout = LAYOUTS[name]
    values = {name: allowed[0] for name, allowed in layout.fields.items()}
    return {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **{folder: list(kinds[part]) for part, folder in layout.folders.items() if part in kinds},
        **{name: [None, None] for name in layout.nothing},
        **(class_facts(parts.class_names, parts.empty_class) if layout.facts else {}),
        **(values | ({ZEROS: parts.zeros_for_empty_prompt} if ZEROS in values else {})),
    }


def read_index(index: Fields, where: Path) -> tuple[Layout, dict[str, Kind]]:
    """Layout and classes of the parts of a `model_index.json`; UserError names what cannot be had."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(f"{where} is of a {name}; ldm loads {', '.join(LAYOUTS)}")
    layout, kinds = LAYOUTS[name], {}
    for part, folder in layout.folders.items():
        found, allowed = index.get(folder), layout.allowed(part)
        if part in layout.may_lack and found in (None, [None, None]):
            continue
        if found not in [list(kind) for kind in allowed]:
            known = " or ".join(dict.fromkeys(kind for _, kind in allowed))
            raise UserError(f"{where}: the part {folder} is {found}; ldm loads {known}")
        kinds[part] = (found[0], found[1])
    for name, value in index.items():
        if name in layout.fields and value not in layout.fields[name]:
            raise refused(name, value, where)
        if name not in (
            *layout.folders.values(),
            *layout.fields,
            *layout.facts,
            *layout.nothing,
        ) and not name.startswith("_"):
            raise UserError(f"{where}: ldm does not know the part {name}")
    return layout, kinds
