"""Prompts to contexts: in as many of an encoder's windows as they need, with weights on their tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.conditioning.text.composition import Composed, spread
from ldm.conditioning.text.encoder import Encoded, TextEncoder
from ldm.conditioning.text.prompt_weights import Weighted, parse
from ldm.conditioning.text.tokenizers import Tokenizer, Window
from ldm.errors import UserNote

if TYPE_CHECKING:
    from ldm.generation.request import Request

Subject = Any  # a prompt, a class, or None
SHOWN = 60  # letters of a text in a note


class Prompts:
    """The text encoders of a model, and how a request wants its prompts read."""

    def __init__(self, texts: Sequence[tuple[TextEncoder, Tokenizer]]) -> None:
        self.texts = texts

    def count(self, prompts: Iterable[str], request: Request) -> int:
        """Return how many windows the longest of some prompts needs: 1 if long prompts are cut."""
        if not request.long_prompts:
            return 1
        read = [_read(prompt, request).text for prompt in prompts]
        return max(len(tokenizer.windows(text)) for _, tokenizer in self.texts for text in read)

    def encode(self, prompts: Sequence[str], request: Request) -> Encoded:
        """Encode to contexts (B, windows * L, D), of two encoders concatenated, and the last one's pooled text (B, P).

        Windows are encoded separately and their contexts are concatenated; where another prompt has more of
        them, the rest come from the empty prompt. Pooled is the text of the first window.
        """
        count, read = self.count(prompts, request), [_read(prompt, request) for prompt in prompts]
        found = [self._encoded(encoder, tokenizer, read, count, request) for encoder, tokenizer in self.texts]
        context = found[0].context if len(found) == 1 else torch.cat([each.context for each in found], dim=-1)
        return Encoded(context, found[-1].pooled)

    def _encoded(
        self, encoder: TextEncoder, tokenizer: Tokenizer, read: Sequence[Weighted], count: int, request: Request
    ) -> Encoded:
        device = next(encoder.parameters()).device
        [empty] = tokenizer.windows("")
        windows: list[Window] = []
        weights: list[list[float]] = []
        for prompt in read:
            own = tokenizer.windows(prompt.text)[:count]
            windows += [*own, *[empty] * (count - len(own))]
            weights += [prompt.of_tokens(window) for window in own] + [[1.0] * len(empty.ids)] * (count - len(own))
        ids, mask = (
            torch.tensor(rows, device=device) for rows in zip(*((w.ids, w.mask) for w in windows), strict=True)
        )
        context, pooled = encoder(ids, mask)  # (B * windows, L, D)
        context = weigh(context, torch.tensor(weights, device=device), request.prompt_syntax == "a1111")
        first = None if pooled is None else pooled[::count]
        return Encoded(context.reshape(len(read), -1, context.shape[-1]), first)

    def warn_of_cuts(self, request: Request) -> None:
        """Issue one warning for all prompts of a request that have words which are not seen."""
        prompts = map(str, spread(request.prompts)[0])
        texts = [_read(prompt, request).text for prompt in (*prompts, request.negative_prompt)]
        cut = [(text, lost) for text in texts if (lost := self._lost(text, request))]
        if not cut:
            return
        text, lost = cut[0]
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        length = self.texts[0][1].max_length
        warnings.warn(
            f"the prompt {_short(text)!r}{more} is longer than the {length} tokens that this model reads: it does not "
            f"see {_short(lost)!r}; --long-prompts (long_prompts=True) reads on",
            UserNote,
            stacklevel=3,
        )

    def _lost(self, text: str, request: Request) -> str:
        """Return the end of a text that is cut, or an empty text."""
        if request.long_prompts:
            return ""
        windows = [tokenizer.windows(text) for _, tokenizer in self.texts]
        rest = [min(span[0] for span in second.spans if span) for _, second, *_ in filter(_is_cut, windows)]
        return text[min(rest) :].strip() if rest else ""


def without_syntax(subject: Subject, request: Request) -> Subject:
    """Return the plain text of a subject, for encoders that do not support weights."""
    if isinstance(subject, Composed):
        return Composed(tuple((_read(text, request).text, weight) for text, weight in subject.parts))
    return _read(subject, request).text if isinstance(subject, str) else subject


def _is_cut(windows: Sequence[Window]) -> bool:
    return len(windows) > 1


def _read(prompt: str, request: Request) -> Weighted:
    return Weighted(prompt, [1.0] * len(prompt)) if request.prompt_syntax == "plain" else parse(prompt)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def weigh(context: Tensor, weights: Tensor, keep_mean: bool) -> Tensor:
    """Multiply the tokens of the context (N, L, D) of N windows by weights (N, L).

    With `keep_mean` a window is scaled to the mean that it had, as AUTOMATIC1111's interface does; one that comes out
    with a mean of zero is not scaled. Windows of weight 1 stay as they are, bit for bit.
    """
    plain = context.float()
    changed = plain * weights[:, :, None]
    if keep_mean:
        mean = changed.mean((1, 2), keepdim=True)
        changed = torch.where(mean == 0, changed, changed * (plain.mean((1, 2), keepdim=True) / mean))
    return torch.where((weights == 1).all(1)[:, None, None], context, changed.to(context.dtype))
