"""`config.json` of transformers' text encoders <-> ours."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.fields import Fields, Fixed, check_fixed, refused
from ldm.config import BertConfig, parse
from ldm.errors import UserError

# What else a transformers file holds says nothing about the encoder's context.
TEXT_DEFAULTS: Fields = {"model_type": None, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TEXT_FIXED: Fixed = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "hidden_dropout_prob": (0.0,),
    "attention_probs_dropout_prob": (0.0,),
    "type_vocab_size": (2,),
    "layer_norm_eps": (1e-12,),
    "pad_token_id": (0,),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
TEXT_NAMES = {
    "max_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
}


def text_to_fields(config: BertConfig) -> Fields:
    """`config.json` of transformers' BertModel; `use_attention_mask` is what StableDiffusionPipeline looks for."""
    return {
        "architectures": ["BertModel"],
        **{name: values[0] for name, values in TEXT_FIXED.items()},
        **{theirs: getattr(config, ours) for ours, theirs in TEXT_NAMES.items()},
        "intermediate_size": 4 * config.hidden_size,
        "use_attention_mask": config.use_attention_mask,
    }


def text_from_fields(fields: Fields, where: Path) -> BertConfig:
    """The configuration of a BertModel; UserError names a field that cannot be had."""
    check_fixed(TEXT_DEFAULTS | fields, TEXT_FIXED, where)
    ours = {}
    for name, theirs in TEXT_NAMES.items():
        if theirs not in fields:
            raise UserError(f"{where} has no field {theirs}: it is not a whole configuration of a BERT")
        ours[name] = fields[theirs]
    config = parse(ours | {"use_attention_mask": fields.get("use_attention_mask", False)}, BertConfig, str(where))
    if fields.get("intermediate_size") != 4 * config.hidden_size:
        raise refused("intermediate_size", fields.get("intermediate_size"), where)
    return config
