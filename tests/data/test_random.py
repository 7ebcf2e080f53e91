"""Random numbers of training are a function of seed, step, slot and purpose."""

import torch

from ldm.data.random import StepRandom


def test_numbers_of_a_slot_do_not_depend_on_other_slots() -> None:
    together = StepRandom(3).normal("noise", 5, range(8), (4, 2))
    alone = torch.cat([StepRandom(3).normal("noise", 5, [slot], (4, 2)) for slot in range(8)])
    assert torch.equal(together, alone)


def test_seed_step_slot_and_purpose_each_change_the_numbers() -> None:
    base = StepRandom(0).normal("noise", 1, [0], (16,))
    others = [
        StepRandom(1).normal("noise", 1, [0], (16,)),
        StepRandom(0).normal("noise", 2, [0], (16,)),
        StepRandom(0).normal("noise", 1, [1], (16,)),
        StepRandom(0).normal("posterior", 1, [0], (16,)),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_numbers_have_the_moments_of_their_distribution() -> None:
    random = StepRandom(0)
    normal = random.normal("noise", 0, range(64), (1024,)).double()
    count = normal.numel()
    assert abs(normal.mean()) < 4 / count**0.5
    assert abs(normal.var() - 1) < 4 * (2 / count) ** 0.5
    uniform = random.uniform("level", 0, range(4096))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / 4096) ** 0.5


def test_choice_reaches_every_value() -> None:
    assert {StepRandom(0).choice("caption", 0, slot, 3) for slot in range(64)} == {0, 1, 2}
