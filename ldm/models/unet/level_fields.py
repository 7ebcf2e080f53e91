"""Fields that both of diffusers' U-Nets share: block types of the levels and most others."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ldm.errors import UserError
from ldm.models.unet.config import UNetConfig
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, Fixed, one_value, refused

COMMON_DEFAULTS: Fields = {
    "sample_size": None,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_dim": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
COMMON_FIXED: Fixed = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "downsample_padding": (0, 1),
    "mid_block_scale_factor": (1,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional",),
}
SAME = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "dropout",
    "norm_num_groups",
    "norm_eps",
    "flip_sin_to_cos",
    "freq_shift",
    "class_embed_type",
    "num_class_embeds",
)  # fields with the name and meaning of our options


def common_to_fields(config: UNetConfig, class_name: str, attending: str) -> Fields:
    """Convert our options to the fields of both classes; `attending` prefixes the block types with attention."""
    kinds = [
        f"{attending}DownBlock2D" if layers else "ResnetDownsampleBlock2D" if by_resnet else "DownBlock2D"
        for layers, by_resnet in zip(config.attention_layers, config.resamples, strict=True)
    ]
    return {
        "_class_name": class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **config.model_dump(mode="json", include=set(SAME)),
        "down_block_types": kinds,
        "up_block_types": [_up(kind) for kind in reversed(kinds)],
        "resnet_time_scale_shift": "scale_shift" if config.time_scale_shift else "default",
        "act_fn": "silu",
    }


def common_from_fields(theirs: Fields, where: Path) -> Fields:
    """Convert the fields of both classes to our options.

    Raises:
        UserError: for a time embedding of another width.
    """
    widths = whole_numbers(theirs["block_out_channels"], "block_out_channels", where)
    if theirs["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise refused("time_embedding_dim", theirs["time_embedding_dim"], where)
    same = {name: theirs[name] for name in theirs.keys() & UNetConfig.model_fields.keys()}
    repeated = {name: one_value(theirs[name], name, where) for name in ("sample_size", "layers_per_block")}
    return same | repeated | {"time_scale_shift": theirs["resnet_time_scale_shift"] == "scale_shift"}


class Level(NamedTuple):
    """A level as described by the type of its block."""

    attends: bool
    by_resnet: bool  # resamples in a ResNet block


def resampling(levels: list[Level]) -> bool | list[bool]:
    """Return our option `resnet_resampling`."""
    ways = [level.by_resnet for level in levels]
    return ways if any(ways) else False


def levels_from_fields(
    theirs: Fields, attending: str, where: Path, halves_by_resnet: bool = False, doubles_by_resnet: bool = False
) -> list[Level]:
    """Return the levels, finest first; `..._by_resnet` says how levels with attention resample.

    Raises:
        UserError: for unsupported block types, and for a decoder that differs from the encoder.
    """
    down_types, up_types = theirs["down_block_types"], theirs["up_block_types"]
    known = _types(attending, halves_by_resnet)
    downs = [known.get(_short(name)) for name in down_types]
    known = {_up(name): level for name, level in _types(attending, doubles_by_resnet).items()}
    ups = [known.get(_short(name)) for name in reversed(up_types)]
    if len(downs) != len(theirs["block_out_channels"]) or None in downs:
        raise refused("down_block_types", down_types, where)
    levels = []
    for number, down in enumerate(downs):
        up = ups[number] if len(ups) == len(downs) else None
        if down is None or up is None or up.attends != down.attends:
            raise refused("up_block_types", up_types, where)
        # The coarsest level does not halve and the finest does not double: their types may say anything about it.
        ways = {down.by_resnet} if number < len(downs) - 1 else set()
        ways |= {up.by_resnet} if number > 0 else set()
        if len(ways) == 2:
            raise refused("upsample_type" if up.attends else "up_block_types", theirs["up_block_types"], where)
        levels.append(Level(down.attends, True in ways))
    return levels


def resampling_of_attending_levels(config: UNetConfig) -> tuple[set[bool], set[bool]]:
    """Return the sets of ways in which levels with attention halve and double: whether in a ResNet block."""
    attending = list(zip(config.attention_layers, config.resamples, strict=True))
    return {by_resnet for layers, by_resnet in attending[:-1] if layers}, {
        by_resnet for layers, by_resnet in attending[1:] if layers
    }


def whole_numbers(value: object, name: str, where: Path) -> list[int]:
    """Check that a field is a non-empty list of positive integers and return it."""
    numbers = [number for number in value if type(number) is int and number > 0] if isinstance(value, list) else []
    if not isinstance(value, list) or not value or len(numbers) != len(value):
        raise refused(name, value, where)
    return numbers


def inexpressible(class_name: str, name: str, value: object, why: str) -> UserError:
    """Return the error for an option that a class of diffusers does not have."""
    return UserError(f"unet.{name} is {value}, but diffusers' {class_name} {why}: save it with --format compvis")


def _types(attending: str, by_resnet: bool) -> dict[str, Level]:
    return {
        "DownBlock2D": Level(attends=False, by_resnet=False),
        "ResnetDownsampleBlock2D": Level(attends=False, by_resnet=True),
        f"{attending}DownBlock2D": Level(attends=True, by_resnet=by_resnet),
    }


def _short(name: object) -> str:
    return str(name).removeprefix("UNetRes")  # prefix in the first versions of diffusers


def _up(name: str) -> str:
    return name.replace("Down", "Up")
