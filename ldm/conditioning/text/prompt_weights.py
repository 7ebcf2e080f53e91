"""Weights in a prompt, in the syntax of AUTOMATIC1111's web interface: `(word)`, `[word]`, `(word:1.3)`.

Round brackets multiply the weight of their content by 1.1, or by the number after a colon; square brackets divide it by
1.1. Brackets nest. A backslash before a bracket or a backslash makes it an ordinary character. A bracket that is never
closed extends to the end of the prompt; one that was never opened is an ordinary character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ldm.conditioning.text.tokenizers import Window
from ldm.errors import UserError

STEP = 1.1  # of a pair of brackets without a number
OPENING = {"(": STEP, "[": 1 / STEP}
CLOSING = {")": "(", "]": "["}
SIGNS = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)


@dataclass
class Weighted:
    """A prompt without its syntax, and the weight of each of its characters."""

    text: str = ""
    weights: list[float] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Append text of weight 1."""
        self.text += text
        self.weights += [1.0] * len(text)

    def multiply(self, start: int, factor: float) -> None:
        """Multiply the weights of all characters from `start` on."""
        self.weights[start:] = [weight * factor for weight in self.weights[start:]]

    def of_tokens(self, window: Window) -> list[float]:
        """Return the weight of each token of a window: its last character's, 1 for tokens that are not in the prompt.

        Vocabularies that mark the beginning of a word count the space before it to the word's first token.
        """
        return [1.0 if span is None else self.weights[max(span[0], span[1] - 1)] for span in window.spans]


def parse(prompt: str) -> Weighted:
    """Parse a prompt into its text and its weights.

    Raises:
        UserError: for syntax of the webui that is not supported.
    """
    found = Weighted()
    _check_no_schedule(prompt)
    opened: dict[str, list[int]] = {mark: [] for mark in OPENING}  # where in the text what is still open begins
    for sign in SIGNS.finditer(prompt):
        number, bracket = sign["number"], sign["bracket"]
        if number and opened["("]:
            found.multiply(opened["("].pop(), float(number))
        elif bracket in OPENING:
            opened[bracket].append(len(found.text))
        elif bracket in CLOSING and opened[CLOSING[bracket]]:
            found.multiply(opened[CLOSING[bracket]].pop(), OPENING[CLOSING[bracket]])
        else:
            found.add(sign["escaped"] or sign[0])
    for mark, starts in opened.items():
        for start in starts:
            found.multiply(start, OPENING[mark])
    return found


def _check_no_schedule(prompt: str) -> None:
    """Raise UserError for prompts that change over the steps, BREAK and AND, which would be read as words."""
    inside: list[str] = []
    for sign in SIGNS.finditer(prompt):
        bracket, text = sign["bracket"], sign["text"] or ""
        if bracket in OPENING:
            inside.append(bracket)
        elif (bracket or sign["number"]) and inside:
            inside.pop()
        elif inside[-1:] == ["["] and (":" in text or "|" in text):
            raise UserError(
                f"prompt {prompt!r}: prompts that change over the steps ([a:b:0.5], [a|b]) are not supported; write "
                r"\[ and \] for the brackets themselves"
            )
        elif word := re.search(r"\b(BREAK|AND)\b", text):
            raise UserError(f"prompt {prompt!r}: {word[1]} is not supported here, write it in lowercase")
