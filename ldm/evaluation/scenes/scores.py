"""Scene scores of samples, beside the scores of the real images of the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch

from ldm.data.scenes.scene import Kind, Scene
from ldm.data.scenes.vocabulary import concepts, is_held_out
from ldm.errors import UserError
from ldm.evaluation.reading import Collector
from ldm.evaluation.scenes.judging import MEASURES, judge
from ldm.evaluation.scenes.probe import CONCEPTS, SceneProbe, load_probe
from ldm.processes import ProcessShare

EVERYTHING, HELD_OUT = "all", "held-out pairs"  # rows in addition to the kinds of scenes
Judged = dict[str, bool]


class Score(NamedTuple):
    """Fraction of images that are right."""

    share: float
    standard_error: float
    images: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> Score:
        """Return the score of at least one judgment."""
        share = float(np.mean(right))
        return cls(share, (share * (1 - share) / len(right)) ** 0.5, len(right))


def scene_reader(probe: SceneProbe, scenes: Sequence[Scene], count: int) -> Collector[Judged]:
    """Return a reader that judges images of scenes.

    Args:
        scenes: records of the images that this process sees, in order.
        count: number of images of all processes.
    """
    waiting = iter(scenes)
    return Collector(count, lambda images: [judge(next(waiting), found) for found in probe.find(images)])


@runtime_checkable
class SceneSource(Protocol):
    """A source whose images were rendered from records."""

    concepts: int | None

    def scene(self, index: int) -> Scene:
        """Return the record of an image."""
        ...


def scenes_of(source: object) -> SceneSource:
    """Return the source if the probe can judge its images, else raise UserError."""
    if not isinstance(source, SceneSource):
        raise UserError("the scene score needs records of the built-in scenes: use --data scenes")
    known_concepts(source.concepts or len(concepts()))
    return source


def known_concepts(asked: int | None) -> int:
    """Return the requested number of concepts, by default all that the probe knows."""
    if asked is not None and asked > CONCEPTS:
        raise UserError(f"the probe of the scene score knows the first {CONCEPTS} concepts, not {asked}")
    return CONCEPTS if asked is None else asked


class SceneJudges:
    """Readers that judge this process' part of the samples, and the real images of the same scenes."""

    def __init__(self, source: SceneSource, count: int, share: ProcessShare, device: torch.device) -> None:
        self._source, self._count = source, count
        scenes = [source.scene(number) for number in share.of(count)]
        probe = load_probe().to(device)
        self.samples, self.real = scene_reader(probe, scenes, count), scene_reader(probe, scenes, count)

    def scores(self, share: ProcessShare) -> SceneScores:
        """Return the scores of all processes' images."""
        scenes = [self._source.scene(number) for number in range(self._count)]
        return SceneScores.of(scenes, self.samples.gathered(share), self.real.gathered(share))


@dataclass(frozen=True)
class SceneScores:
    """Scores by row (all, held-out pairs, each kind of scene) and measure, of samples and of the real images."""

    samples: dict[str, dict[str, Score]]
    real: dict[str, dict[str, Score]]  # the probe's accuracy

    @classmethod
    def of(cls, scenes: Sequence[Scene], samples: Sequence[Judged], real: Sequence[Judged]) -> SceneScores:
        """Aggregate the judgments of samples and real images."""
        return cls(_rows(scenes, samples), _rows(scenes, real))

    def results(self) -> dict[str, float]:
        """Return the scores of all scenes and of held-out pairs, with standard errors and the probe's accuracy."""
        found: dict[str, float] = {}
        for row in (EVERYTHING, HELD_OUT):
            for measure, score in self.samples.get(row, {}).items():
                name = f"scene_{measure}" if row == EVERYTHING else f"held_out_{measure}"
                found |= {name: score.share, f"{name}_standard_error": score.standard_error}
                found[f"{name}_probe"] = self.real[row][measure].share
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return all rows: for each measure its share, standard error, number of images and the probe's share."""
        return {
            row: {
                measure: score._asdict() | {"probe": self.real[row][measure].share}
                for measure, score in measures.items()
            }
            for row, measures in self.samples.items()
        }

    def table(self) -> str:
        """Format all rows in per cent: `right ±standard error (probe on the real images)`."""
        lines = [f"{'scene score, %':15}{'N':>6}" + "".join(f"{measure:>21}" for measure in MEASURES)]
        for row, measures in self.samples.items():
            cells = [self._cell(row, measure) if measure in measures else "" for measure in MEASURES]
            lines.append(f"{row:15}{measures['whole'].images:>6}" + "".join(f"{cell:>21}" for cell in cells))
        return "\n".join(lines)

    def _cell(self, row: str, measure: str) -> str:
        score = self.samples[row][measure]
        return f"{100 * score.share:.1f} ±{100 * score.standard_error:.1f} ({100 * self.real[row][measure].share:.1f})"


def _rows(scenes: Sequence[Scene], judged: Sequence[Judged]) -> dict[str, dict[str, Score]]:
    members: dict[str, list[Judged]] = {name: [] for name in (EVERYTHING, HELD_OUT, *get_args(Kind))}
    for scene, right in zip(scenes, judged, strict=True):
        members[EVERYTHING].append(right)
        members[scene.kind].append(right)
        if _is_held_out(scene):
            members[HELD_OUT].append(right)
    return {row: _measures(found) for row, found in members.items() if found}


def _measures(judged: Sequence[Judged]) -> dict[str, Score]:
    groups = {measure: [right[measure] for right in judged if measure in right] for measure in MEASURES}
    return {measure: Score.of(right) for measure, right in groups.items() if right}


def _is_held_out(scene: Scene) -> bool:
    names = sorted(set(scene.labels()))
    return len(names) == 2 and is_held_out(*names)
