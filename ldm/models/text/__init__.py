"""Captions to what the U-Net is told: tokenizers and text encoders."""

from ldm.config.conditions import BertConfig, CLIPConfig, LDMBertConfig, OpenCLIPConfig, T5Config, TextSection
from ldm.models.text.bert import BertTextEncoder
from ldm.models.text.clip import CLIPTextEncoder
from ldm.models.text.encoder import Encoded, TextEncoder
from ldm.models.text.ldm_bert import LDMBertTextEncoder
from ldm.models.text.open_clip import OpenCLIPTextEncoder
from ldm.models.text.t5 import T5TextEncoder
from ldm.models.text.tokenizers import SPECIAL_TOKENS, Tokenizer

ENCODERS: dict[type[TextSection], type[TextEncoder]] = {
    BertConfig: BertTextEncoder,
    LDMBertConfig: LDMBertTextEncoder,
    CLIPConfig: CLIPTextEncoder,
    OpenCLIPConfig: OpenCLIPTextEncoder,
    T5Config: T5TextEncoder,
}


def make_text_encoder(config: TextSection) -> TextEncoder:
    """The network that a section describes, with new weights; UserError for sizes its architecture does not have."""
    return ENCODERS[type(config)](config)


__all__ = [
    "SPECIAL_TOKENS",
    "BertTextEncoder",
    "CLIPTextEncoder",
    "Encoded",
    "LDMBertTextEncoder",
    "OpenCLIPTextEncoder",
    "T5TextEncoder",
    "TextEncoder",
    "Tokenizer",
    "make_text_encoder",
]
