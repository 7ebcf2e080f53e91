"""Every number in a configuration has a bound, so that a sign or a zero by mistake is an error."""

import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal

import pytest
import typer

from ldm import config, registry
from ldm.cli.main import app
from ldm.config.section import Section
from ldm.errors import UserError
from ldm.generation.request import Request

UNBOUNDED = {  # any finite number is valid
    "shift_factor": "the mean of latents",
    "freq_shift": "a field of diffusers' files",
    "logit_mean": "the mean of a normal distribution",
    "initial_log_variance": "a logarithm",
}


def sections() -> set[type[Section]]:
    """The section classes of the configuration and of all registered components."""
    for each in vars(registry).values():
        if isinstance(each, registry.Registry):
            [each[name] for name in each]

    def subclasses(of: type[Section]) -> Iterator[type[Section]]:
        for each in of.__subclasses__():
            yield each
            yield from subclasses(each)

    return {each for each in subclasses(Section) if each.__module__.startswith("ldm.")}


def numbers(annotation: Any, metadata: list[Any]) -> Iterator[list[Any]]:
    """The metadata of each number in an annotation."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *more = typing.get_args(annotation)
        yield from numbers(inner, [*metadata, *more])
    elif annotation in (int, float):
        yield metadata
    elif origin is not Literal:
        for part in typing.get_args(annotation):
            yield from numbers(part, metadata)


def has_bound(metadata: list[Any]) -> bool:
    parts = [part for each in metadata for part in (each, *getattr(each, "metadata", ()))]
    return any(getattr(part, bound, None) is not None for part in parts for bound in ("ge", "gt"))


def test_every_number_of_every_section_has_a_lower_bound() -> None:
    found = sections()
    assert len(found) > 30
    missing = [
        f"{section.__name__}.{name}"
        for section in found
        for name, field in section.model_fields.items()
        if name not in UNBOUNDED
        for metadata in numbers(field.annotation, list(field.metadata))
        if not has_bound(metadata)
    ]
    assert missing == []


@pytest.mark.parametrize(
    "option",
    [
        "training.unet.gradient_clip=0",
        "training.unet.gradient_clip=-1",
        "training.unet.learning_rate=-1e-4",
        "training.unet.learning_rate=.nan",
        "training.unet.learning_rates={unet: -1}",
        "training.unet.weight_decay=-0.1",
        "training.unet.betas=[0.9, 1.0]",
        "training.unet.ema_decay=1",
        "training.unet.ema_others=[-0.5]",
        "training.unet.sample_guidance_scale=-3",
        "training.unet.sample_classes=[-1]",
        "training.autoencoder.warmup_steps=-1",
        "training.unet.optimizer_options={betas: [0.9, 1.0]}",
        "training.unet.optimizer_options={weight_decay: -1}",
        "training.unet.optimizer_options={momentum: .nan}",
        "training.unet.optimizer_options={lr: 0.1}",
        "training.seed=-1",
        "training.seed=18446744073709551616",
        "loss.kl.weight=-1",
        "loss.perceptual.weight=-0.1",
        "loss.adversarial.weight=-1",
        "loss.adversarial.learning_rate=-1",
        "loss.adversarial.discriminator_layers=0",
        "loss.equivariance.weight=-1",
        "data.scenes.concepts=0",
        "data.scenes.seed=-1",
        "autoencoder.attention_levels=[-1]",
    ],
)
def test_a_number_out_of_range_is_an_error_that_names_the_option(option: str) -> None:
    path = option.partition("=")[0]
    with pytest.raises(UserError, match=path.replace(".", r"\.")):
        config.load("emoji", [option])


def commands(command: Any) -> Iterator[Any]:
    for each in getattr(command, "commands", {}).values():
        yield from commands(each)
    if not hasattr(command, "commands"):
        yield command


def test_every_number_on_the_command_line_has_a_lower_bound() -> None:
    """Options that `Request` or the configuration check, with the names that Python users know, are left out."""
    checked = {each.name for each in fields(Request)} | {"max_steps", "save_every", "seed"}
    missing, found = set(), 0
    for command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            about = parameter.type_descriptor
            if parameter.name not in checked and list(numbers(about.annotation, [])):
                found += 1
                missing |= {f"{command.name} {parameter.name}"} if about.parameter_info.min is None else set()
    assert found > 10
    assert missing == {"apply amount"}, "a direction also has an opposite"


@pytest.mark.parametrize("name", ["num_inference_steps", "num_images", "batch_size", "deepcache", "seed", "eta"])
def test_a_request_with_a_negative_number_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(UserError, match=name):
        Request(prompts=("a dog",), **{name: -1})
