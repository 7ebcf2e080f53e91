"""What checks share: diagnoses, and values that last over the reports of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ldm.config.root import Config

Report = dict[str, Any]  # a line of `log.jsonl` that has losses and what was `observed`
SOON, LONG = 50, 500  # steps that a state must have lasted
LEARNING = 200  # steps after the warm-up before anything is expected


class Diagnosis(NamedTuple):
    """A problem, identified by name and place; the numbers in its text may change."""

    name: str
    text: str  # what was seen, what it means, what to do
    place: str = ""  # such as `channel 2`

    @property
    def title(self) -> str:
        """The name and, if known, the place, such as `KL collapse in channel 2`."""
        return f"{self.name} in {self.place}" if self.place else self.name


Check = Callable[[Sequence[Report], Config], Iterator[Diagnosis]]


def lasting(reports: Sequence[Report], name: str, steps: int) -> list[Any]:
    """Return the values of `name` in the reports of the last `steps` steps; [] if it was not reported that long."""
    found: list[Any] = []
    for report in reversed(reports):
        value = report.get(name, report.get("observed", {}).get(name))
        if value is None:
            return []
        found.append(value)
        if report["step"] <= reports[-1]["step"] - steps:
            return found[::-1]
    return []


def always(values: Sequence[float], true: Callable[[float], bool]) -> bool:
    """Return whether a condition holds for all values, and there are any."""
    return bool(values) and all(map(true, values))


def std_of_latents(report: Report) -> list[float]:
    """Return standard deviations of latents by channel from the moments in a report."""
    pairs = zip(report["observed"]["latent_mean"], report["observed"]["latent_mean_square"], strict=True)
    return [max(square - mean**2, 0.0) ** 0.5 for mean, square in pairs]


def channels(numbers: Sequence[int], count: int) -> str:
    """Format `channel 2`, `channels 0, 2` or `all 4 channels`."""
    if len(numbers) == count:
        return f"all {count} channels"
    return f"channel{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
