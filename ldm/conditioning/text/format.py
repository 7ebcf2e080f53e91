"""`config.json` of transformers' text encoders <-> ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import TextSection
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.t5 import T5Config
from ldm.config.section import parse
from ldm.errors import UserError
from ldm.storage.fields import EXTRA, Fields, Fixed, check_fixed, extra, refused


@dataclass(frozen=True)
class Format:
    """How a class of transformers writes one of our kinds of text encoder.

    Fields that are in no table (dropout, initialisation, other heads) say nothing about what the encoder gives.
    """

    config: type[TextSection]
    model_types: tuple[str, ...]  # what we write, then what else we read
    architecture: str
    names: dict[str, str]  # ours -> theirs
    defaults: Fields  # of theirs where a file has none; a name in neither must be there
    fixed: Fixed
    feed_forward: str | None = None  # a width that must be four times the tokens'
    noted: Fields = field(default_factory=dict)  # ours alone, with the values that need no note
    written: Fields = field(default_factory=dict)  # what we write besides, and what a file says of it does not matter


BERT = Format(
    BertConfig,
    model_types=("bert",),
    architecture="BertModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "use_attention_mask": "use_attention_mask",  # what StableDiffusionPipeline looks for
    },
    defaults={"use_attention_mask": False},
    fixed={
        "hidden_act": ("gelu",),
        "type_vocab_size": (2,),
        "layer_norm_eps": (1e-12,),
        "pad_token_id": (0,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    feed_forward="intermediate_size",
    written={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
)
LDM_BERT = Format(
    LDMBertConfig,
    model_types=("ldmbert",),
    architecture="LDMBertModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "head_width": "head_dim",
    },
    defaults={
        "max_position_embeddings": 77,
        "vocab_size": 30522,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 8,
        "head_dim": 64,
        "encoder_ffn_dim": 5120,
    },
    fixed={"activation_function": ("gelu",), "pad_token_id": (0,), "use_attention_mask": (False, None)},
    feed_forward="encoder_ffn_dim",
    noted={"tokens": "words"},
    written={"dropout": 0.0},
)
CLIP = Format(
    CLIPConfig,
    model_types=("clip_text_model", "clip"),
    architecture="CLIPTextModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "hidden_act": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
        "eos_token_id": "eos_token_id",
        "projection_dim": "projection_dim",
    },
    defaults={
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
        "projection_dim": 512,
    },
    fixed={"use_attention_mask": (False, None)},
    noted={"layer": "last", "final_norm": True},
    written={"bos_token_id": None},
)
T5 = Format(
    T5Config,
    model_types=("t5",),
    architecture="T5EncoderModel",
    names={
        "max_length": "n_positions",  # of no consequence to T5, whose positions have no table
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "head_width": "d_kv",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "use_attention_mask": "use_attention_mask",
    },
    defaults={
        "n_positions": 512,
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "use_attention_mask": False,
        "feed_forward_proj": "relu",
    },
    fixed={
        "feed_forward_proj": ("gated-gelu",),
        "relative_attention_num_buckets": (32,),
        "relative_attention_max_distance": (128,),
        "layer_norm_epsilon": (1e-6,),
        "pad_token_id": (0,),
    },
    written={"dropout_rate": 0.0, "tie_word_embeddings": True, "is_encoder_decoder": False},
)
FORMATS = (BERT, LDM_BERT, CLIP, T5)
PROJECTED = "CLIPTextModelWithProjection"  # the class whose projection_dim means something, beside a whole CLIPModel


def architecture(config: TextSection) -> str:
    """The class of transformers, or of diffusers for an LDMBert, that loads what we write."""
    return PROJECTED if getattr(config, "projection_dim", None) is not None else _format_of(config).architecture


def text_to_fields(config: TextSection) -> Fields:
    """`config.json` of a text encoder; what only we know stands in a field of our own."""
    form = _format_of(config)
    values = {theirs: getattr(config, ours) for ours, theirs in form.names.items()}
    notes = {name: getattr(config, name) for name, usual in form.noted.items() if getattr(config, name) != usual}
    fields = {
        "architectures": [architecture(config)],
        "model_type": form.model_types[0],
        **{name: allowed[0] for name, allowed in form.fixed.items()},
        **form.written,
        **values,
        **({EXTRA: notes} if notes else {}),
    }
    if form.feed_forward:
        fields[form.feed_forward] = 4 * config.hidden_size
    if form is CLIP:  # both need a number there
        fields["intermediate_size"] = values["intermediate_size"] or 4 * config.hidden_size
        fields["projection_dim"] = values["projection_dim"] or config.hidden_size
    return fields


def text_from_fields(fields: Fields, where: Path) -> TextSection:
    """The configuration of a text encoder; UserError names a field that cannot be had."""
    form = _find_format(fields, where)
    if form is CLIP:
        fields = _clip_text(fields)
    fields = form.defaults | fields
    check_fixed(fields, form.fixed, where)
    for name in form.names.values():
        if name not in fields:
            raise UserError(f"{where} has no field {name}: it is not a whole configuration of a {form.architecture}")
    ours = {name: fields[theirs] for name, theirs in form.names.items()}
    ours |= {name: extra(fields).get(name, usual) for name, usual in form.noted.items()}
    config = parse(ours, form.config, str(where))
    width = 4 * config.hidden_size
    if form.feed_forward and fields.get(form.feed_forward) != width:
        raise refused(form.feed_forward, fields.get(form.feed_forward), where)
    if form is CLIP and ours["intermediate_size"] == width:
        config = config.model_copy(update={"intermediate_size": None})
    return config


def _clip_text(fields: Fields) -> Fields:
    """The fields of the text encoder alone, with a `projection_dim` only where the text is projected."""
    if isinstance(fields.get("text_config"), dict):  # a whole CLIP, images and all
        return fields["text_config"] | {"projection_dim": fields.get("projection_dim", 512)}
    return fields if fields.get("architectures") == [PROJECTED] else fields | {"projection_dim": None}


def _format_of(config: TextSection) -> Format:
    for form in FORMATS:
        if isinstance(config, form.config):
            return form
    raise TypeError(f"{type(config).__name__} has no files of its own")


def _find_format(fields: Fields, where: Path) -> Format:
    for form in FORMATS:
        if fields.get("model_type") in form.model_types:
            return form
    known = ", ".join(form.model_types[0] for form in FORMATS)
    raise UserError(f"{where}: the field model_type is {fields.get('model_type')!r}; ldm loads {known}")
