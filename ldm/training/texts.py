"""Captions, through one text encoder that is trained together with the U-Net or frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import TextEncoder, TextSection, make_text_encoder
from ldm.conditioning.text.files import saved_config
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.sources import load_source
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.loader import Batch
from ldm.data.preview import all_captions
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.compatibility import check_same
from ldm.training.conditions import Condition, Fields, Teller
from ldm.training.diagnostics.observations import of_contexts
from ldm.training.transfer import moved


class TextCondition(Condition):
    """The context of one caption of each image; a share of the captions is the empty prompt."""

    options = ("text_learning_rate", "condition_dropout", "sample_prompts", "sample_guidance_scale")

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        super().__init__(parts, config, accelerator, cache)
        [(self.text_encoder, self.tokenizer)] = parts.texts
        self.frozen = _section(config).frozen
        if self.frozen:
            self.text_encoder.to(accelerator.device).eval().requires_grad_(False)

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """Refuse an encoder that neither comes from somewhere nor can be made from captions."""
        text = _section(config)
        if isinstance(text, LDMBertConfig) and text.tokens == "boxes":
            raise UserError("text.tokens boxes: train-unet has captions, which are words")
        if new and text.source is None:
            if not isinstance(text, BertConfig | LDMBertConfig):
                raise UserError(
                    f"text.kind {text.kind} needs text.source: a vocabulary for it is not made from captions"
                )
            if text.frozen:
                raise UserError("text.frozen without text.source would keep random weights: set one of the two")
        if text.frozen and config.training.unet.text_learning_rate is not None:
            raise UserError(
                "training.unet.text_learning_rate is for a text encoder that is trained; text.frozen is true"
            )

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """The encoder and tokenizer of `text.source`, or new ones with a vocabulary out of the captions."""
        text = _section(config)
        if text.source is not None:
            text_encoder, tokenizer = load_source(text)
            return {"text_encoder": text_encoder, "tokenizer": tokenizer}
        tokenizer = _tokenizer(text, source, accelerator)
        return {"text_encoder": _new_encoder(text, tokenizer), "tokenizer": tokenizer}

    @classmethod
    def own_parts(cls, config: Config, source: Source, saved: Parts, where: str) -> Fields:
        """The run's tokenizer, and its encoder where that is frozen."""
        text, found = _section(config), super().own_parts(config, source, saved, where)
        return found if text.frozen else found | {"text_encoder": _new_encoder(text, found["tokenizer"])}

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """The encoder and tokenizer of a model with one text encoder like that of the configuration."""
        if not given.texts:
            return None
        if len(given.texts) > 1:
            raise UserError(f"the model {where} is not what the configuration describes: it has not one text encoder")
        [(text_encoder, tokenizer)] = given.texts
        check_same(text_encoder.config, saved_config(_section(config)), "text", where)
        return {"text_encoder": text_encoder, "tokenizer": tokenizer}

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """The encoder, if it is not frozen."""
        return {} if self.frozen else {"text_encoder": self.text_encoder}

    @property
    def rates(self) -> Mapping[str, float]:
        """`text_learning_rate`."""
        rate = self.settings.text_learning_rate
        return {} if rate is None else {"text": rate}

    @property
    def teller(self) -> Teller:
        """Encodes in the forward pass, or hands on what a frozen encoder made."""
        return tell_context if self.frozen else encode_and_tell

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Token ids and mask (B, L), or the context (B, L, D) of a frozen encoder."""
        captions, device = self.captions(batch), self.accelerator.device
        if self.frozen and self.cache is not None and self.cache.has_context:
            return (moved(self.cache.embedded("context", batch.indices, captions), device),)
        ids, mask = (moved(tensor, device) for tensor in self.tokenizer(captions))
        if not self.frozen:
            return ids, mask
        with torch.no_grad(), self.accelerator.autocast():
            return (self.text_encoder(ids, mask).context,)

    def captions(self, batch: Batch) -> list[str]:
        """The captions, those that are dropped replaced by the empty prompt."""
        pairs = zip(batch.captions, self.dropped(batch), strict=True)
        return ["" if dropped else caption for caption, dropped in pairs]

    def examples(self) -> Fields | None:
        """An image of each of `sample_prompts`."""
        prompts = list(self.settings.sample_prompts)
        return {"prompt": prompts, "guidance_scale": self.settings.sample_guidance_scale} if prompts else None


def encode_and_tell(network: Any, token_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A `Teller` of captions of token ids (B, L)."""
    context = network.text_encoder(token_ids, mask).context
    if network.training:
        network.observed = of_contexts(context, token_ids)
    return {"context": context}


def tell_context(network: nn.Module, context: Tensor) -> dict[str, Tensor]:
    """A `Teller` of a context (B, L, D) that was made before."""
    return {"context": context}


def _section(config: Config) -> TextSection:
    assert config.text is not None  # else there is no TextCondition
    return config.text


def _new_encoder(text: TextSection, tokenizer: Tokenizer) -> TextEncoder:
    found = {} if text.source else {"vocab_size": tokenizer.vocab_size}  # as many as there are in the captions
    return make_text_encoder(text.model_copy(update=found))


def _tokenizer(text: TextSection, source: Source, accelerator: Accelerator) -> Tokenizer:
    """A vocabulary made from the captions by the main process and given to the others."""
    from accelerate.utils import broadcast_object_list

    made: list[str | None] = [None]
    if accelerator.is_main_process:
        made[0] = Tokenizer.train(all_captions(source), text.vocab_size, text.max_length).to_json()
    broadcast_object_list(made)
    assert made[0] is not None
    return Tokenizer.from_json(made[0], text.max_length)
