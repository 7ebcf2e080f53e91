"""U-Net fields that ldm does not support, or that diffusers cannot express, raise an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.models.unet import condition_fields, plain_fields
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.fields import unet_from_fields, unet_to_fields
from ldm.models.unet.unet import UNet
from ldm.storage.fields import EXTRA

HERE = Path("unet/config.json")
CONDITION: dict[str, Any] = {"_class_name": "UNet2DConditionModel", "sample_size": 8}
PLAIN: dict[str, Any] = {"_class_name": "UNet2DModel", "sample_size": 8}
SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "attention_layers": (1, 1), "norm_num_groups": 4}
SCALE_SHIFT = {"resnet_time_scale_shift": "scale_shift"}

FIXED = [
    (fields, name) for fields, module in ((CONDITION, condition_fields), (PLAIN, plain_fields)) for name in module.FIXED
]
REFUSED: list[tuple[dict[str, Any], str, Any]] = [
    *((fields, name, "something else") for fields, name in FIXED),
    (CONDITION, "sample_size", [8, 16]),
    (CONDITION, "layers_per_block", [2, 2, 3, 3]),
    (CONDITION, "cross_attention_dim", [8, 8, 8, 16]),
    (CONDITION, "transformer_layers_per_block", [1, 1]),
    (CONDITION, "transformer_layers_per_block", [[1, 1], [1, 1], [1, 1], [1, 1]]),
    (CONDITION | {"transformer_layers_per_block": [1, 2, 3, 3]}, "reverse_transformer_layers_per_block", [1, 2, 3, 3]),
    (CONDITION, "attention_head_dim", None),
    (CONDITION, "attention_head_dim", [5, 10, 20]),
    (CONDITION, "attention_head_dim", [8, 8, 8, 3]),  # of the mid block, although the last level does not attend
    (CONDITION, "time_embedding_dim", 512),
    (CONDITION, "down_block_types", ["AttnDownBlock2D"] * 3 + ["DownBlock2D"]),
    (CONDITION, "down_block_types", ["SimpleCrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]),
    (CONDITION, "down_block_types", ["DownBlock2D"]),
    (CONDITION, "up_block_types", ["CrossAttnUpBlock2D"] * 4),
    (CONDITION, "up_block_types", ["UpBlock2D"]),
    (PLAIN, "down_block_types", ["SkipDownBlock2D"] + ["AttnSkipDownBlock2D"] * 3),
    (PLAIN, "down_block_types", ["CrossAttnDownBlock2D"] * 4),
    (PLAIN, "attention_head_dim", 100),
    (PLAIN, "attention_head_dim", [8, 8, 8, 8]),
    (PLAIN, "attn_norm_num_groups", 16),
    (PLAIN | SCALE_SHIFT, "attn_norm_num_groups", None),
    (PLAIN, "upsample_type", "resnet"),  # while downsample_type is conv
    (PLAIN, "class_embed_type", "projection"),
    (PLAIN, "cross_attention_dim", 768),  # of the other class
]


@pytest.mark.parametrize(("fields", "name", "value"), REFUSED)
def test_what_we_do_not_have_raises_an_error_by_its_name(fields: dict[str, Any], name: str, value: Any) -> None:
    unet_from_fields(fields | ({"attn_norm_num_groups": 32} if fields == PLAIN | SCALE_SHIFT else {}), HERE)
    with pytest.raises(UserError) as raised:
        unet_from_fields(fields | {name: value}, HERE)
    assert name in str(raised.value)
    assert str(HERE) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [None, [], [None], "x", -1, 0, 1.5, {}, [{}], [[1]], ["x"], [0, 0, 0, 0], True])
@pytest.mark.parametrize(("fields", "names"), [(CONDITION, condition_fields.DEFAULTS), (PLAIN, plain_fields.DEFAULTS)])
def test_a_field_with_any_value_is_understood_or_an_error_of_one_line(
    fields: dict[str, Any], names: dict[str, Any], value: Any
) -> None:
    messages = []
    for name in [*names, EXTRA]:
        try:
            unet_from_fields(fields | {name: value}, HERE)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > len(names) // 4
    assert not any("\n" in message for message in messages)


def plain(**options: Any) -> UNetConfig:
    given = {"attention": "plain", "cross_attention_dim": None, "num_attention_heads": 1}
    return UNetConfig(**given | options)


INEXPRESSIBLE = {
    "num_attention_heads": plain(num_attention_heads=8),  # as LDM's inpainting_big has
    "class_embed_type": plain(class_embed_type="simple_projection", projection_class_embeddings_input_dim=4),
    "addition_embed_type": plain(
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=16
    ),
    "resnet_resampling": plain(resnet_resampling=(True, False, False)),
    "resnet_resampling ": UNetConfig(resnet_resampling=True),
    "mid_attention_layers": UNetConfig(mid_attention_layers=2),
    "mid_attention_layers ": UNetConfig(attention_layers=(1, 1, 0), mid_attention_layers=0),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_an_option_that_diffusers_does_not_have_raises_an_error_by_its_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"unet\.{name.strip()} is .*diffusers' UNet2D"):
        unet_to_fields(INEXPRESSIBLE[name])


def test_one_head_at_every_width_and_heads_of_one_width_can_be_expressed() -> None:
    assert unet_to_fields(plain())["attention_head_dim"] is None
    assert unet_to_fields(plain(num_attention_heads=(4, 8, 12)))["attention_head_dim"] == 32
    assert (
        unet_to_fields(plain(attention_layers=(0, 1, 0), mid_attention_layers=0, num_attention_heads=8))[
            "attention_head_dim"
        ]
        == 32
    )


@pytest.mark.parametrize(
    "config",
    [
        plain(attention_layers=(0, 0, 1), num_attention_heads=(5, 7, 12), use_linear_projection=False),
        plain(resnet_resampling=(True, True, True), mid_attention_layers=1),
        UNetConfig(mid_attention_layers=1, num_attention_heads=(8, 8, 8), resnet_resampling=(False, False, False)),
    ],
)
def test_an_option_that_says_the_same_in_another_way_comes_back_as_it_was(config: UNetConfig) -> None:
    fields = unet_to_fields(config)
    assert unet_from_fields(fields, HERE) == config
    assert unet_from_fields(fields | {"norm_eps": 1e-3}, HERE) == config.model_copy(update={"norm_eps": 1e-3})


def test_fields_that_were_changed_decide_over_our_own_note_of_them() -> None:
    fields = unet_to_fields(plain(attention_layers=(0, 0, 1), num_attention_heads=(5, 7, 12)))
    assert (fields["attention_head_dim"], fields[EXTRA]) == (32, {"num_attention_heads": [5, 7, 12]})
    changed = unet_from_fields(fields | {"attention_head_dim": 96}, HERE)
    assert changed.num_attention_heads == (1, 2, 4)


def test_a_network_that_diffusers_cannot_express_leaves_no_files(tmp_path: Path) -> None:
    config = plain(**SMALL, num_attention_heads=8)
    with pytest.raises(UserError, match="num_attention_heads"):
        UNet(config).save_pretrained(tmp_path / "unet")
    assert list(tmp_path.iterdir()) == []
