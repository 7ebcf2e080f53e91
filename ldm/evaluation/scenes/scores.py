"""Scene scores of many images, and the probe's own on the real ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch

from ldm.data.scenes.scene import Kind, Scene
from ldm.data.scenes.vocabulary import concepts, is_held_out
from ldm.errors import UserError
from ldm.evaluation.scenes.judging import MEASURES, judge
from ldm.evaluation.scenes.probe import CONCEPTS, SceneProbe, load_probe
from ldm.processes import ProcessShare

EVERYTHING, HELD_OUT = "all", "held-out pairs"  # rows beside those of the kinds
Judged = dict[str, bool]


class Score(NamedTuple):
    """A share of images that are right."""

    share: float
    standard_error: float
    images: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> Score:
        """Of images judged alike; at least one."""
        share = float(np.mean(right))
        return cls(share, (share * (1 - share) / len(right)) ** 0.5, len(right))


class SceneReader:
    """Judges this process' share of the images of scenes."""

    def __init__(self, probe: SceneProbe, scenes: Sequence[Scene], count: int) -> None:
        """`scenes` are those of the images that will be seen, in their order, out of `count` of all processes."""
        self.probe, self.scenes, self.count = probe, scenes, count
        self._judged: list[Judged] = []

    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        at = len(self._judged)
        scenes = self.scenes[at : at + len(images)]
        self._judged += [judge(scene, found) for scene, found in zip(scenes, self.probe.find(images), strict=True)]

    def gathered(self, share: ProcessShare) -> list[Judged]:
        """Of all processes' images in their order."""
        return share.gather(self._judged)


@runtime_checkable
class SceneSource(Protocol):
    """A source whose images were drawn from records."""

    concepts: int | None

    def scene(self, index: int) -> Scene:
        """The record of an image."""
        ...


def scenes_of(source: object) -> SceneSource:
    """The source, if it tells what the probe can judge; else UserError."""
    if not isinstance(source, SceneSource):
        raise UserError("the scene score compares images with records of the built-in scenes: --data scenes")
    known_concepts(source.concepts or len(concepts()))
    return source


def known_concepts(asked: int | None) -> int:
    """The number of concepts asked for, or all that the probe knows; UserError for more."""
    if asked is not None and asked > CONCEPTS:
        raise UserError(f"the probe of the scene score knows the first {CONCEPTS} concepts, not {asked}")
    return CONCEPTS if asked is None else asked


class SceneJudges:
    """Judges of this process' part of the samples, and of the same scenes' real images."""

    def __init__(self, source: SceneSource, count: int, share: ProcessShare, device: torch.device) -> None:
        self._source, self._count = source, count
        scenes = [source.scene(number) for number in share.of(count)]
        probe = load_probe().to(device)
        self.samples, self.real = SceneReader(probe, scenes, count), SceneReader(probe, scenes, count)

    def scores(self, share: ProcessShare) -> SceneScores:
        """Of all processes' images."""
        scenes = [self._source.scene(number) for number in range(self._count)]
        return SceneScores.of(scenes, self.samples.gathered(share), self.real.gathered(share))


@dataclass(frozen=True)
class SceneScores:
    """Scores by row (all, held-out pairs, each kind of scene) and measure, of samples and of the real images."""

    samples: dict[str, dict[str, Score]]
    real: dict[str, dict[str, Score]]  # the probe's accuracy

    @classmethod
    def of(cls, scenes: Sequence[Scene], samples: Sequence[Judged], real: Sequence[Judged]) -> SceneScores:
        """Of the scenes' samples and images, each as it was judged."""
        return cls(_rows(scenes, samples), _rows(scenes, real))

    def results(self) -> dict[str, float]:
        """The scores of all scenes and of the held-out pairs, with standard errors and the probe's accuracy."""
        found: dict[str, float] = {}
        for row in (EVERYTHING, HELD_OUT):
            for measure, score in self.samples.get(row, {}).items():
                name = f"scene_{measure}" if row == EVERYTHING else f"held_out_{measure}"
                found |= {name: score.share, f"{name}_standard_error": score.standard_error}
                found[f"{name}_probe"] = self.real[row][measure].share
        return found

    def as_dict(self) -> dict[str, Any]:
        """All rows: of each measure the share, its standard error, the number of images and the probe's share."""
        return {
            row: {
                measure: score._asdict() | {"probe": self.real[row][measure].share}
                for measure, score in measures.items()
            }
            for row, measures in self.samples.items()
        }

    def table(self) -> str:
        """All rows as text, in per cent: `right +- standard error (the probe on the real images)`."""
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
