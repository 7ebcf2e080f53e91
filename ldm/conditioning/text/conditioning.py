"""Conditioning on text: prompts through one or two text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ldm.conditioning.base import (
    GUIDANCE_SCALE,
    Conditioning,
    DenoiserInputs,
    Meta,
    Part,
    Sections,
    StoredPipeline,
    Subject,
    TrainingContext,
)
from ldm.conditioning.conditional_denoiser import ConditioningFn, pass_on
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.size_conditioning import SizeConditioning
from ldm.conditioning.text import files, tokenizer_files
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.composition import spread
from ldm.conditioning.text.encoder import TextConfig, TextEncoder, TextSection, make_text_encoder
from ldm.conditioning.text.inputs import TextInputs, sizes_and_crops
from ldm.conditioning.text.prompts import Prompts
from ldm.conditioning.text.sources import adopt, load_source, source_config
from ldm.conditioning.text.tokenizers import Tokenizer, train_tokenizer
from ldm.config.compatibility import check_same
from ldm.config.section import Section, parse
from ldm.data.missing_captions import require_captions
from ldm.errors import UserError
from ldm.registry import TEXT_ENCODERS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request

ZEROS = "force_zeros_for_empty_prompt"  # in `model_index.json`
SECTIONS = ("text", "text_2")
ENDINGS = ("", "_2")  # of the parts of each encoder
WITH_SCORE = 5  # numbers beside the pooled text of SDXL's refiner, of which the last is an aesthetic score
SCORES = (6.0, 2.5)  # defaults of the scores of a request
Encoders = Sequence[tuple[TextEncoder, Tokenizer]]


class TextConditioning(Conditioning):
    """Prompts through one text encoder, or two whose contexts are concatenated along the width (SDXL).

    A denoiser with `addition_embed_type: text_time` also gets the last encoder's pooled text and SDXL's size and crop
    conditioning (Podell et al. 2023, section 2.2).
    """

    name = "text"
    sections: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "text": (TextConfig | None, BertConfig()),
        "text_2": (TextConfig | None, None),
    }
    training_options = frozenset({"text_learning_rate", "condition_dropout", "sample_prompts", "sample_guidance_scale"})
    request_options = frozenset(
        {"prompts", "negative_prompt", "prompt_syntax", "long_prompts", "size_conditioning"}
        | {"aesthetic_score", "negative_aesthetic_score"}
    )

    def __init__(self, encoders: Encoders, zeros_for_empty_prompt: bool = False) -> None:
        """`zeros_for_empty_prompt`: guidance without a negative prompt moves away from zeros, as in SDXL."""
        self.encoders, self.zeros_for_empty_prompt = tuple(encoders), zeros_for_empty_prompt
        self.prompts = Prompts(self.encoders)

    # --- configuration

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return any(sections.get(name) is not None for name in SECTIONS)

    @classmethod
    def denoiser_inputs(cls, sections: Sections) -> DenoiserInputs:
        found = {name: sections[name] for name in SECTIONS if sections.get(name) is not None}
        if "text" not in found:
            raise ValueError("text_2 is a second text encoder: set text as well")
        pooled = getattr(list(found.values())[-1], "projection_dim", None)
        return DenoiserInputs({f"{name}.hidden_size": each.hidden_size for name, each in found.items()}, pooled=pooled)

    @classmethod
    def complete(cls, config: Config, saved: Config | None) -> Config:
        """Take the sizes of each encoder from its source; a run that continues has them already."""
        found = {}
        for name, text in _sections(config).items():
            if text.source is None:
                continue
            before: TextSection | None = None if saved is None else getattr(saved, name)
            own = before if before is not None and before.source == text.source else None
            if own is not None and own.frozen != text.frozen:
                raise UserError(f"{name}.frozen is {text.frozen}, but {own.frozen} in the run: it cannot change")
            found[name] = adopt(text, own or source_config(text)).model_dump()
        return parse(config.model_dump() | found, type(config), "text.source") if found else config

    def added_numbers(self, denoiser: Any) -> int | None:
        """Count the numbers that the denoiser of a section embeds beside the pooled text; None: it embeds none."""
        pooled = getattr(self.encoders[-1][0].config, "projection_dim", None)
        count: int | None = None if denoiser.pooled_width is None else denoiser.added_numbers(pooled)
        return count

    # --- modules and files

    @property
    def described(self) -> dict[str, Section]:
        return {name: encoder.config for name, (encoder, _) in zip(SECTIONS, self.encoders, strict=False)}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {f"text_encoder{end}": encoder for end, (encoder, _) in zip(ENDINGS, self.encoders, strict=False)}

    def check(self, pipeline: Pipeline) -> None:
        for encoder, tokenizer in self.encoders:
            if tokenizer.vocab_size > encoder.vocab_size:
                raise ValueError(
                    f"the tokenizer has {tokenizer.vocab_size} tokens, but the text encoder's table has "
                    f"{encoder.vocab_size}: use the tokenizer that it was trained with"
                )
            if encoder.config.has_positions and tokenizer.max_length != encoder.config.max_length:
                raise ValueError(
                    f"the tokenizer pads to {tokenizer.max_length} tokens, but the text encoder has "
                    f"{encoder.config.max_length} positions: they must be equal"
                )
        if len({tokenizer.max_length for _, tokenizer in self.encoders}) > 1:
            lengths = " and ".join(str(tokenizer.max_length) for _, tokenizer in self.encoders)
            raise ValueError(f"the tokenizers pad to {lengths} tokens: they must be equal")

    def with_modules(self, modules: Mapping[str, Any]) -> TextConditioning:
        names = zip(self.modules, self.encoders, strict=True)
        encoders = [(modules.get(name, encoder), tokenizer) for name, (encoder, tokenizer) in names]
        return TextConditioning(encoders, self.zeros_for_empty_prompt)

    @classmethod
    def known_parts(cls) -> Mapping[str, tuple[Part, ...]]:
        encoders = tuple(part for encoder in TEXT_ENCODERS.values() for part in encoder.loadable_parts())
        kinds = {"text_encoder": encoders, "tokenizer": tokenizer_files.PARTS}
        return {name + end: known for end in ENDINGS for name, known in kinds.items()}

    @property
    def parts(self) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for end, (encoder, tokenizer) in zip(ENDINGS, self.encoders, strict=False):
            found[f"text_encoder{end}"] = files.part_of(files.saved_config(encoder.config))
            found[f"tokenizer{end}"] = ("transformers", tokenizer_files.tokenizer_class(tokenizer))
        return found

    @property
    def facts(self) -> dict[str, Any]:
        return {ZEROS: True} if self.zeros_for_empty_prompt else {}

    def matches(self, options: Mapping[str, Mapping[str, Any]]) -> bool:
        saved = {name: files.saved_config(encoder.config) for name, encoder in self.modules.items()}
        return all(section == _with_options(section, options.get(name, {})) for name, section in saved.items())

    def save(self, places: Mapping[str, Path], dtype: torch.dtype | None, shard_size: int) -> None:
        for end, (encoder, tokenizer) in zip(ENDINGS, self.encoders, strict=False):
            files.save_text_encoder(encoder, places[f"text_encoder{end}"], dtype, shard_size)
            tokenizer_files.save_tokenizer(tokenizer, places[f"tokenizer{end}"])

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        found = []
        for end in ENDINGS:
            part = f"text_encoder{end}"
            if part not in stored.places:
                continue
            decided = stored.options.get(part, {})
            config = _with_options(files.load_text_config(stored.places[part]), decided)
            encoder = files.load_text_encoder(stored.places[part], stored.dtype, config)
            tokenizer = tokenizer_files.load_tokenizer(stored.places[f"tokenizer{end}"], decided.get("max_length"))
            found.append((encoder, tokenizer))
        return cls(found, bool(stored.index.get(ZEROS, False))) if found else None

    # --- training

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        pooled = cls.denoiser_inputs(config.sections).pooled
        if _needs_pooled(config) and pooled is not None and config.denoiser.added_numbers(pooled) == WITH_SCORE:
            raise UserError(
                "the U-Net embeds an aesthetic score of each image (SDXL's refiner), which no data source has: such "
                "models can be loaded and converted, but not trained"
            )
        for name, text in _sections(config).items():
            TEXT_ENCODERS[text.kind].check_training(text, name, new)
            if text.frozen and config.training.unet.text_learning_rate is not None:
                raise UserError(
                    f"training.unet.text_learning_rate applies to a trained text encoder, but {name}.frozen is true"
                )

    @classmethod
    def check_source(cls, source: Source) -> None:
        """Check that the data has captions."""
        require_captions(source)

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        made: list[tuple[TextEncoder, Tokenizer]] = []
        for text in _sections(config).values():
            if text.source is not None:
                made.append(load_source(text))
                continue
            tokenizer = train_tokenizer(source, text.vocab_size, text.max_length, accelerator)
            made.append((make_text_encoder(text.model_copy(update={"vocab_size": tokenizer.vocab_size})), tokenizer))
        return cls(made)

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        found, asked = cls.of(given), _sections(config)
        if found is None:
            return None
        if len(found.encoders) != len(asked):
            raise UserError(
                f"the model {where} has {len(found.encoders)} text encoders, but the configuration has {len(asked)}: "
                "set text and text_2 accordingly"
            )
        for (encoder, _), (name, text) in zip(found.encoders, asked.items(), strict=True):
            check_same(encoder.config, files.saved_config(text), name, where)
        return found

    def trained(self, context: TrainingContext) -> Mapping[str, nn.Module]:
        frozen = [text.frozen for text in _sections(context.config).values()]
        return {name: each for (name, each), keep in zip(self.modules.items(), frozen, strict=True) if not keep}

    def learning_rates(self, context: TrainingContext) -> Mapping[str, float]:
        rate = context.settings.text_learning_rate
        return {} if rate is None else dict.fromkeys(self.trained(context), rate)

    def needs_images(self, config: Config) -> bool:
        """Return whether images are needed for the sizes and crops of SDXL's conditioning."""
        return _needs_pooled(config)

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Token ids and mask (B, L) of each trained encoder, context (B, L, D) of each frozen one; sizes (B, 6)."""
        captions = self.captions(batch, context)
        found: list[Tensor] = []
        for (encoder, tokenizer), text in zip(self.encoders, _sections(context.config).values(), strict=True):
            found += self._inputs(encoder, tokenizer, captions, batch, context, text.frozen)
        if _needs_pooled(context.config):
            found.append(context.to_device(sizes_and_crops(batch)))
        return tuple(found)

    def _inputs(
        self,
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        captions: list[str],
        batch: Batch,
        context: TrainingContext,
        frozen: bool,
    ) -> list[Tensor]:
        if frozen and context.cache is not None and context.cache.has_context:
            return [context.to_device(context.cache.embedded("context", batch.indices, captions))]
        ids, mask = map(context.to_device, tokenizer(captions))
        if not frozen:
            return [ids, mask]
        with torch.no_grad(), context.accelerator.autocast():
            encoded = encoder(ids, mask)
        added = encoder is self.encoders[-1][0] and _needs_pooled(context.config)
        return [encoded.context, encoded.pooled] if added else [encoded.context]

    def captions(self, batch: Batch, context: TrainingContext) -> list[str]:
        """Return the captions, the dropped ones replaced by the empty prompt."""
        pairs = zip(batch.captions, context.dropped(batch), strict=True)
        return ["" if dropped else caption for caption, dropped in pairs]

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        sections, pooled = _sections(config), _needs_pooled(config)
        [single, *others] = sections.values()
        if single.frozen and not others and not pooled:
            return pass_on("context")
        frozen = {f"text_encoder{end}": text.frozen for end, text in zip(ENDINGS, sections.values(), strict=False)}
        return TextInputs(frozen, pooled)

    @classmethod
    def meta(cls, config: Config) -> Meta:
        inputs: list[Tensor] = []
        modules: dict[str, nn.Module] = {}
        frozen = []
        sections, added = _sections(config), _needs_pooled(config)
        for end, text in zip(ENDINGS, sections.values(), strict=False):
            encoder, ids = make_text_encoder(text), torch.zeros(1, text.max_length, dtype=torch.long)
            if text.frozen:
                frozen.append((encoder, ids))
                inputs.append(torch.zeros(1, text.max_length, text.hidden_size))
                if added and end == ENDINGS[len(sections) - 1]:
                    inputs.append(torch.zeros(1, getattr(text, "projection_dim", 0)))
            else:
                inputs += [ids, torch.ones_like(ids)]
                modules[f"text_encoder{end}"] = encoder
        if added:
            inputs.append(torch.zeros(1, 6))
        return Meta(tuple(inputs), modules, lambda: [encoder(ids, torch.ones_like(ids)) for encoder, ids in frozen])

    def sample_options(self, context: TrainingContext) -> dict[str, Any] | None:
        prompts = list(context.settings.sample_prompts)
        return {"prompt": prompts, "guidance_scale": context.settings.sample_guidance_scale} if prompts else None

    # --- inference

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        if not request.prompts:
            raise UserError("this model generates from text: give a PROMPT, or several")
        count = self.added_numbers(pipeline.denoiser.config)
        if request.size_conditioning is not None and count is None:
            raise UserError("this model has no size and crop conditioning (SDXL): leave size_conditioning out")
        if count != WITH_SCORE and (request.aesthetic_score, request.negative_aesthetic_score) != SCORES:
            raise UserError("this model has no aesthetic score (SDXL's refiner has): leave aesthetic_score out")
        self.prompts.warn_of_cuts(request)
        return request if request.guidance_scale is not None else replace(request, guidance_scale=GUIDANCE_SCALE)

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        """Encode prompts; the unconditional row is the negative prompt or, for some models without one, zeros."""
        texts = [str(subject) for subject in (*subjects, request.negative_prompt)]
        unique = list(dict.fromkeys(texts))  # each text is encoded once
        encoded = self.prompts.encode(unique, request)
        found = Conditions(encoded.context, pooled=encoded.pooled if _has_added(pipeline) else None)
        rows = found.rows([unique.index(text) for text in texts])
        cond, uncond = rows.rows(slice(len(subjects))), rows.rows(slice(len(subjects), None))
        if self.zeros_for_empty_prompt and not request.negative_prompt:
            uncond = uncond.map(torch.zeros_like)
        if (count := self.added_numbers(pipeline.denoiser.config)) is None:
            return cond, uncond
        sizes = (request.size_conditioning or SizeConditioning()).sizes(size)
        scores = request.aesthetic_score, request.negative_aesthetic_score
        numbers = [sizes if count == len(sizes) else [*sizes[:4], score] for score in scores]
        own, other = encoded.context.new_tensor(numbers, dtype=torch.float32)  # (6,) or (5,) each
        return replace(cond, sizes=own.expand(len(subjects), -1)), replace(uncond, sizes=other[None])

    def length(self, subject: Subject, request: Request) -> int:
        """Return the windows of the longest of its texts and the negative prompt; the others are padded."""
        return self.prompts.count([*map(str, spread([subject])[0]), request.negative_prompt], request)


def _with_options(section: TextSection, options: Mapping[str, Any]) -> TextSection:
    known = {name: value for name, value in options.items() if name in type(section).model_fields}
    return section.model_copy(update=known)


def _sections(config: Config) -> dict[str, TextSection]:
    return {name: section for name in SECTIONS if (section := getattr(config, name)) is not None}


def _needs_pooled(config: Config) -> bool:
    return config.denoiser.pooled_width is not None


def _has_added(pipeline: Pipeline) -> bool:
    return pipeline.denoiser.config.pooled_width is not None
