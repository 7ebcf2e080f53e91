"""The scene score: an error in an image lowers the measures of this error, and no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.data.scenes import Scene, make_scene, render
from ldm.data.scenes.colours import THINGS as COLOURS
from ldm.evaluation.scenes.examples import MOST, make_examples
from ldm.evaluation.scenes.judging import MEASURES, judge
from ldm.evaluation.scenes.probe import CELLS, Found, SceneProbe, load_probe
from ldm.evaluation.scenes.scores import SceneScores, scene_reader
from ldm.evaluation.scenes.training import loss_of
from ldm.processes import ProcessShare

SCENES = [make_scene(5, index, "test", 80) for index in range(150)]


def seen(scene: Scene) -> list[Found]:
    """Return what a perfect probe finds in the real image."""
    return [Found(thing.name, thing.colour or "red", thing.box, 1.0) for thing in scene.things]


def of(kind: str) -> list[tuple[Scene, list[Found]]]:
    return [(scene, seen(scene)) for scene in SCENES if scene.kind == kind]


def wrong(scene: Scene, found: list[Found]) -> set[str]:
    return {measure for measure, right in judge(scene, found).items() if not right}


def test_the_record_is_right_in_all_measures():
    judged = [judge(scene, seen(scene)) for scene in SCENES]
    assert all(all(right.values()) for right in judged)
    assert {measure for right in judged for measure in right} == set(MEASURES)


def test_a_wrong_colour_lowers_colours_only():
    for scene, found in of("coloured") + of("two coloured"):
        other = next(name for name in COLOURS if name != found[0].colour)
        assert wrong(scene, [replace(found[0], colour=other), *found[1:]]) == {"colours", "whole"}


def test_a_wrong_number_lowers_counts_only():
    for scene, found in of("count"):
        assert wrong(scene, found[1:]) == {"counts", "whole"}
        assert wrong(scene, [*found, found[0]]) == {"counts", "whole"}


def test_swapped_sides_lower_sides_only():
    for scene, (one, other) in of("beside") + of("above"):
        assert wrong(scene, [replace(one, box=other.box), replace(other, box=one.box)]) == {"sides", "whole"}


def test_swapped_sizes_lower_sizes_only():
    for scene, (one, other) in of("sizes"):
        assert wrong(scene, [replace(one, box=other.box), replace(other, box=one.box)]) == {"sizes", "whole"}


def test_a_prop_beside_the_animal_lowers_contacts_only():
    for kind in ("playing", "wearing", "riding"):
        for scene, (animal, prop) in of(kind):
            apart = (animal.box[0] + 1, animal.box[1], animal.box[2] + 1, animal.box[3])
            assert wrong(scene, [animal, replace(prop, box=apart)]) == {"contacts", "whole"}


def test_a_missing_and_a_wrong_object_lower_objects():
    for scene, found in of("beside"):
        assert "objects" in wrong(scene, found[:1])
        strange = next(name for name in ("dog", "cat", "key") if name not in scene.labels())
        assert wrong(scene, [*found, replace(found[0], name=strange)]) == {"objects", "whole"}


def test_a_model_that_returns_the_real_images_has_the_score_of_the_probe():
    scenes = SCENES[:40]
    images = np.stack([render(scene, 64) for scene in scenes])
    readers = [scene_reader(load_probe(), scenes, len(scenes)) for _ in range(2)]
    for reader in readers:
        reader.see(images)
    scores = SceneScores.of(scenes, *(reader.gathered(ProcessShare()) for reader in readers))
    assert scores.samples == scores.real
    assert scores.real["all"]["objects"].share > 0.95
    for wrong_images in (np.roll(images, 1, axis=0), np.full_like(images, 128)):  # of other scenes, grey
        reader = scene_reader(load_probe(), scenes, len(scenes))
        reader.see(wrong_images)
        assert not any(right["objects"] for right in reader.gathered(ProcessShare()))


def test_the_training_examples_of_the_probe_are_reproducible():
    one, again = (make_examples(3, 12, 32, 20, processes=1) for _ in range(2))
    np.testing.assert_array_equal(one.images, again.images)
    np.testing.assert_array_equal(one.things, again.things)
    assert one.things.shape == (12, MOST, 6)
    assert one.things[..., 0].max() < 20
    assert (one.things[:, 0, 0] >= 0).all()


def test_the_loss_falls_when_maps_show_the_objects():
    things = torch.full((1, MOST, 6), -1.0)
    things[0, 0] = torch.tensor([7, 3, 0.25, 0.25, 0.75, 0.75])
    heat = torch.full((1, 80, CELLS, CELLS), -8.0)
    box, colour = torch.zeros(1, 4, CELLS, CELLS), torch.zeros(1, len(COLOURS), CELLS, CELLS)
    nothing = loss_of((heat, box, colour), things)
    heat[0, 7, CELLS // 2, CELLS // 2] = 8.0
    found = loss_of((heat, box, colour), things)
    box[0, 2:, CELLS // 2, CELLS // 2] = np.log(CELLS / 2)
    placed = loss_of((heat, box, colour), things)
    colour[0, 3, CELLS // 2, CELLS // 2] = 3.0
    painted = loss_of((heat, box, colour), things)
    assert nothing > found > placed > painted


@pytest.mark.parametrize("side", [64, 96])
def test_the_probe_takes_images_of_any_size(side):
    found = SceneProbe().eval().find(np.zeros((2, side, side, 3), dtype=np.uint8))
    assert len(found) == 2
