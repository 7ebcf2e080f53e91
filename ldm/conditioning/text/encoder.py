"""The protocol of text encoders: token ids in, a context and perhaps one pooled vector per caption out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import SerializeAsAny
from torch import Tensor, nn

from ldm.conditioning.text.format import Format
from ldm.config.section import ByKind, Count, Section, Width, parse
from ldm.errors import UserError
from ldm.registry import TEXT_ENCODERS
from ldm.storage.fields import EXTRA, Fields, check_fixed, extra, refused

T = TypeVar("T")


class TextSection(Section):
    """Options that all text encoders have."""

    kind: str
    source: str | None = None  # a directory or a Hub id with weights and tokenizer; null: new weights
    frozen: bool = False  # not trained together with the denoiser
    vocab_size: Width = 1
    max_length: Width = 77  # tokens, including special ones
    hidden_size: Width = 768  # width of the context
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12

    has_positions: ClassVar[bool] = True  # a table of `max_length` positions


# A text encoder of any registered kind.
TextConfig = Annotated[SerializeAsAny[TextSection], ByKind(TEXT_ENCODERS, "bert")]


class Encoded(NamedTuple):
    """The output of a text encoder."""

    context: Tensor  # (B, L, D), for cross-attention
    pooled: Tensor | None = None  # (B, P), one vector per caption, if the encoder has a projection


class TextEncoder(nn.Module, ABC):
    """A network from token ids to a context, described by its section alone.

    Without a `format` it is saved in a layout of our own, which needs no further code.
    """

    section: ClassVar[type[TextSection]]
    format: ClassVar[Format | None] = None  # of transformers' files
    from_captions: ClassVar[bool] = True  # can be trained from scratch with a vocabulary made from the captions

    def __init__(self, config: TextSection) -> None:
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        """Number of rows of the token embedding."""
        return self.config.vocab_size

    @abstractmethod
    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Encode token ids (B, L); the mask (B, L) is 1 at tokens and 0 at padding."""

    @classmethod
    def check_training(cls, section: TextSection, name: str, new: bool) -> None:
        """Raise UserError if the section `name` cannot be trained, `new` if not from a trained model."""
        if not new or section.source is not None:
            return
        if not cls.from_captions:
            raise UserError(f"{name}.kind {section.kind} needs {name}.source: its vocabulary is not made from captions")
        if section.frozen:
            raise UserError(f"{name}.frozen without {name}.source would keep random weights: set one of the two")

    # --- files

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Return values of `model_type` in `config.json`, the written one first."""
        if cls.format is not None:
            return cls.format.model_types
        return (str(cls.section.model_fields["kind"].default),)

    @classmethod
    def part(cls, section: TextSection) -> tuple[str, str]:
        """Return library and class as `model_index.json` names them."""
        return ("ldm", cls.__name__) if cls.format is None else ("transformers", cls.format.architecture)

    @classmethod
    def loadable_parts(cls) -> tuple[tuple[str, str], ...]:
        """Return libraries and classes that can be loaded."""
        return (cls.part(cls.section(kind=cls.section.model_fields["kind"].default)),)

    @classmethod
    def to_fields(cls, section: TextSection) -> Fields:
        """Return `config.json`; options that only we have are in a field of our own."""
        form = cls.format
        if form is None:
            own = section.model_dump(mode="json", exclude={"kind", "source", "frozen"})
            return {"architectures": [cls.__name__], "model_type": section.kind, **own}
        notes = {name: getattr(section, name) for name, usual in form.noted.items() if getattr(section, name) != usual}
        fields = {
            "architectures": [cls.part(section)[1]],
            "model_type": form.model_types[0],
            **{name: allowed[0] for name, allowed in form.fixed.items()},
            **form.written,
            **{theirs: getattr(section, ours) for ours, theirs in form.names.items()},
            **({EXTRA: notes} if notes else {}),
        }
        return fields | ({form.feed_forward: 4 * section.hidden_size} if form.feed_forward else {})

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> TextSection:
        """Return the section of a `config.json`.

        Raises:
            UserError: for an unsupported or missing field.
        """
        form = cls.format
        if form is None:
            names = cls.section.model_fields.keys() - {"kind", "source", "frozen"}
            return parse({name: fields[name] for name in names & fields.keys()}, cls.section, str(where))
        fields = form.defaults | fields
        check_fixed(fields, form.fixed, where)
        for name in form.names.values():
            if name not in fields:
                raise UserError(
                    f"{where} has no field {name}, which a {form.architecture} needs: the file is incomplete"
                )
        ours = {name: fields[theirs] for name, theirs in form.names.items()}
        ours |= {name: extra(fields).get(name, usual) for name, usual in form.noted.items()}
        section = parse(ours, cls.section, str(where))
        if form.feed_forward and fields.get(form.feed_forward) != 4 * section.hidden_size:
            raise refused(form.feed_forward, fields.get(form.feed_forward), where)
        return section

    @classmethod
    def saved_section(cls, section: Any) -> TextSection:
        """Return the section that an encoder has when it is loaded from its folder again."""
        found: TextSection = section
        return found

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the weights of `saved_section`."""
        return self.state_dict()

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return further weights that transformers' class expects in a file."""
        return {}

    @classmethod
    def network_tensors(cls, tensors: dict[str, T]) -> dict[str, T]:
        """Rename the weights of a file, or their headers, as the network has them, without unused ones."""
        form = cls.format
        kept: dict[str, T] = {}
        renamed: dict[str, T] = {}
        for old, tensor in tensors.items():
            name = old
            for pattern, replacement in ({} if form is None else form.renamed).items():
                name = re.sub(pattern, replacement, name)
            if form is None or form.unused is None or not re.match(form.unused, name):
                (kept if name == old else renamed)[name] = tensor
        return kept | renamed  # T5 files may hold a table shared by both halves and the encoder's own, which wins


def initialise(module: nn.Module) -> None:
    """Initialise with a standard deviation of 0.02, padding and biases with zero (Devlin et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


def make_text_encoder(config: TextSection) -> TextEncoder:
    """Create the network of a section, with new weights.

    Raises:
        UserError: for sizes that its architecture does not have.
    """
    encoder: TextEncoder = TEXT_ENCODERS[config.kind](config)
    return encoder
