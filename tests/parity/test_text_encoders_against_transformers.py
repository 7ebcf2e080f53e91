"""Our text encoders are those of transformers, diffusers and open_clip: equal numbers, folders that load both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection, make_text_encoder
from ldm.conditioning.text.files import load_text_config, load_text_encoder, save_text_encoder, saved_config
from ldm.conditioning.text.format import text_from_fields, text_to_fields
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.open_clip import OpenCLIPConfig, clip_config
from ldm.conditioning.text.open_clip_names import clip_from_open_clip
from ldm.conditioning.text.t5 import T5Config
from ldm.devices import on_meta
from ldm.errors import UserError

END = 90
IDS = torch.tensor([[89, 5, 17, 3, END, END, END, END], [89, 21, 9, 40, 41, 42, 7, END]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8])
SIZES = {"vocab_size": 91, "max_length": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def randomise(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (weight.ndim == 1))


def random_encoder(config: TextSection) -> TextEncoder:
    encoder = make_text_encoder(config)
    randomise(encoder)
    return encoder.eval()


@torch.no_grad()
def encoded(encoder: TextEncoder) -> Encoded:
    return encoder(IDS, MASK)


def assert_close(made: Tensor | None, expected: Tensor) -> None:
    """Within 1e-5 of the largest value: float32 sums in another order."""
    assert made is not None
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def theirs_from(folder: Path, kind: type) -> nn.Module:
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


@torch.no_grad()
def clip_outputs(model: nn.Module, config: CLIPConfig) -> tuple[Tensor, Tensor | None]:
    """The context and the pooled text that a pipeline of diffusers makes of a CLIP of transformers."""
    found = model(IDS, output_hidden_states=True)
    context = found.hidden_states[-1 if config.layer == "last" else -2]
    if config.final_norm:
        context = getattr(model, "text_model", model).final_layer_norm(context)
    return context, getattr(found, "text_embeds", None)


CLIPS = {
    "Stable Diffusion 1": CLIPConfig(**SIZES, eos_token_id=2),
    "Stable Diffusion 2": CLIPConfig(**SIZES, hidden_act="gelu", intermediate_size=48, eos_token_id=END),
    "the first of SDXL": CLIPConfig(**SIZES, layer="penultimate", final_norm=False),
    "the second of SDXL": CLIPConfig(
        **SIZES, hidden_act="gelu", projection_dim=20, layer="penultimate", final_norm=False, eos_token_id=END
    ),
    "pooled at the largest id": CLIPConfig(**SIZES, projection_dim=32, layer_norm_eps=1e-3, eos_token_id=2),
}


@pytest.mark.parametrize("config", CLIPS.values(), ids=CLIPS.keys())
def test_clip_is_transformers_clip_and_its_folders_load_both_ways(config: CLIPConfig, tmp_path: Path) -> None:
    ours = random_encoder(config)
    made = encoded(ours)
    save_text_encoder(ours, tmp_path / "ours")
    kind = transformers.CLIPTextModel if config.projection_dim is None else transformers.CLIPTextModelWithProjection
    theirs = theirs_from(tmp_path / "ours", kind)
    context, pooled = clip_outputs(theirs, config)
    assert_close(made.context, context)
    assert (made.pooled is None) is (config.projection_dim is None)
    if pooled is not None:
        assert_close(made.pooled, pooled)
    assert load_text_config(tmp_path / "ours") == config
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_text_encoder(tmp_path / "theirs", config=config)
    assert_close(encoded(again).context, context)


def test_an_unused_last_layer_is_not_written(tmp_path: Path) -> None:
    config = CLIPConfig(**SIZES, layer="penultimate")
    ours = random_encoder(config)
    save_text_encoder(ours, tmp_path)
    theirs = theirs_from(tmp_path, transformers.CLIPTextModel)
    assert theirs.config.num_hidden_layers == 2
    with torch.no_grad():
        assert_close(encoded(ours).context, theirs(IDS).last_hidden_state)
    assert load_text_config(tmp_path) == saved_config(config) == CLIPConfig(**SIZES | {"num_hidden_layers": 2})


def test_a_whole_clip_gives_its_text_half(tmp_path: Path) -> None:
    text = {"vocab_size": 91, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 8, "eos_token_id": END}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path)
    made = encoded(load_text_encoder(tmp_path))
    with torch.no_grad():
        assert_close(made.context, theirs.text_model(IDS).last_hidden_state)
        assert_close(made.pooled, theirs.get_text_features(IDS).pooler_output)


@pytest.mark.parametrize("use_mask", [True, False])
def test_t5_is_transformers_t5_and_its_folders_load_both_ways(use_mask: bool, tmp_path: Path) -> None:
    config = T5Config(**SIZES, head_width=6, intermediate_size=40, use_attention_mask=use_mask)
    ours = random_encoder(config)
    save_text_encoder(ours, tmp_path / "ours")
    theirs = theirs_from(tmp_path / "ours", transformers.T5EncoderModel)
    with torch.no_grad():
        expected = theirs(IDS, attention_mask=MASK if use_mask else None).last_hidden_state
    assert_close(encoded(ours).context, expected)
    assert load_text_config(tmp_path / "ours") == config
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(encoded(load_text_encoder(tmp_path / "theirs")).context, expected)


def test_the_encoder_of_a_whole_t5_is_found(tmp_path: Path) -> None:
    config = T5Config(**SIZES, head_width=6, intermediate_size=40)
    save_text_encoder(random_encoder(config), tmp_path / "encoder")
    shape = transformers.T5Config.from_pretrained(tmp_path / "encoder", tie_word_embeddings=False)
    theirs = transformers.T5ForConditionalGeneration(shape).eval()
    theirs.save_pretrained(tmp_path / "whole")
    made = encoded(load_text_encoder(tmp_path / "whole", config=config))
    with torch.no_grad():
        assert_close(made.context, theirs.encoder(IDS, attention_mask=MASK).last_hidden_state)


def test_a_bert_of_the_hub_with_its_heads_and_old_names_is_read(tmp_path: Path) -> None:
    shape = transformers.BertConfig(
        vocab_size=91, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=16,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(shape).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    old_names(tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = theirs.bert(IDS, attention_mask=MASK).last_hidden_state
    config = load_text_config(tmp_path)
    assert (config.max_length, config.use_attention_mask) == (16, False)
    asked = config.model_copy(update={"max_length": 8, "use_attention_mask": True})
    assert_close(encoded(load_text_encoder(tmp_path, config=asked)).context, expected)


def old_names(path: Path) -> None:
    """Rename as the first published BERTs do, and add the buffer that they hold."""
    from safetensors.torch import load_file, save_file

    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    assert any(name.startswith("bert.") for name in tensors)
    assert any(name.startswith("cls.") for name in tensors)
    save_file(tensors | {"bert.embeddings.position_ids": torch.arange(16)[None]}, path, {"format": "pt"})


def test_ldm_bert_is_the_ldm_bert_of_diffusers_and_its_folders_load_both_ways(tmp_path: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    config = LDMBertConfig(**SIZES, head_width=10)
    ours = random_encoder(config)
    save_text_encoder(ours, tmp_path / "ours")
    theirs = theirs_from(tmp_path / "ours", LDMBertModel)
    with torch.no_grad():
        expected = theirs(IDS).last_hidden_state
    assert_close(encoded(ours).context, expected)
    assert load_text_config(tmp_path / "ours") == config
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(encoded(load_text_encoder(tmp_path / "theirs")).context, expected)


@pytest.fixture
def tiny_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures of open_clip small enough for a test."""
    import open_clip.factory

    text = {"context_length": 8, "vocab_size": 91, "width": 32, "heads": 4, "layers": 3}
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    tiny = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", tiny)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", tiny | {"quick_gelu": True})


OPEN_CLIPS = {
    "Stable Diffusion 2": {},
    "the second of SDXL": {"projection_dim": 20, "final_norm": False},
    "the last layer": {"layer": "last", "projection_dim": 20},
}


@pytest.mark.usefixtures("tiny_open_clip")
@pytest.mark.parametrize("options", OPEN_CLIPS.values(), ids=OPEN_CLIPS.keys())
@pytest.mark.parametrize("name", ["tiny", "tiny-quickgelu"])
def test_open_clip_gives_what_open_clip_gives_and_the_same_weights_as_clip_give_it_too(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    import open_clip

    theirs = open_clip.create_model(name).eval()
    randomise(theirs)
    config = OpenCLIPConfig(**SIZES, model=name, **options)
    ours = make_text_encoder(config).eval()
    state = theirs.state_dict()
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    found = theirs.forward_intermediates(
        text=IDS, text_indices=2, normalize_intermediates=config.final_norm, text_output_fmt="NLC"
    )
    made = encoded(ours)
    assert_close(made.context, found["text_intermediates"][0 if config.layer == "penultimate" else 1])
    if config.projection_dim:
        assert_close(made.pooled, theirs.encode_text(IDS))
    weights = ours.state_dict()
    same = make_text_encoder(clip_config(config)).eval()
    same.load_state_dict(clip_from_open_clip(weights))
    for mine, other in zip(made, encoded(same), strict=True):
        assert other is None if mine is None else torch.allclose(mine, other, atol=1e-5, rtol=1e-5)
    save_text_encoder(ours, tmp_path)
    again = load_text_encoder(tmp_path)
    assert again.config == saved_config(config)
    assert_close(encoded(again).context, made.context)


def test_half_precision_and_shards_of_text_encoders_come_back(tmp_path: Path) -> None:
    ours = random_encoder(CLIPS["Stable Diffusion 1"])
    save_text_encoder(ours, tmp_path, torch.float16, shard_size=20_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    context = encoded(load_text_encoder(tmp_path)).context
    assert context.dtype == torch.float32
    assert (context - encoded(ours).context).abs().max() < 0.05
    assert theirs_from(tmp_path, transformers.CLIPTextModel).dtype == torch.float16
    save_text_encoder(ours, tmp_path, torch.float16)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    assert_close(encoded(load_text_encoder(tmp_path)).context, context)


KINDS = {"bert": BertConfig, "ldm_bert": LDMBertConfig, "clip": CLIPConfig, "t5": T5Config}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_is_made_on_the_meta_device_without_any_file(kind: str) -> None:
    with on_meta():
        encoder = make_text_encoder(KINDS[kind](**SIZES))
    assert {weight.device.type for weight in encoder.parameters()} == {"meta"}


PUBLISHED = {
    LDMBertConfig(): 581_994_042,
    LDMBertConfig(hidden_size=640): 186_154_682,
    LDMBertConfig(hidden_size=512, num_hidden_layers=16, vocab_size=8192, max_length=92): 58_858_496,
    CLIPConfig(): 123_060_480,  # CLIP ViT-L/14, of Stable Diffusion 1
    OpenCLIPConfig(): 352_984_064,  # OpenCLIP ViT-H/14 without the projection, of Stable Diffusion 2
}


@pytest.mark.parametrize("config", PUBLISHED, ids=str)
def test_published_sizes_have_their_published_number_of_parameters(config: TextSection) -> None:
    with on_meta():
        encoder = make_text_encoder(config)
    assert sum(weight.numel() for weight in encoder.parameters()) == PUBLISHED[config]


REFUSED = {
    "bert": [
        ("model_type", "roberta"),
        ("hidden_act", "relu"),
        ("type_vocab_size", 1),
        ("intermediate_size", 17),
        ("layer_norm_eps", 1e-5),
        ("pad_token_id", 1),
        ("position_embedding_type", "relative_key"),
        ("hidden_size", None),
    ],
    "ldm_bert": [("activation_function", "relu"), ("encoder_ffn_dim", 17), ("use_attention_mask", True)],
    "clip": [("hidden_act", "gelu_new"), ("eos_token_id", [1, 2]), ("use_attention_mask", True), ("hidden_size", 33)],
    "t5": [
        ("feed_forward_proj", "relu"),
        ("relative_attention_num_buckets", 64),
        ("layer_norm_epsilon", 1e-5),
        ("pad_token_id", 1),
    ],
}


@pytest.mark.parametrize(
    ("kind", "field", "value"), [(kind, *change) for kind, changes in REFUSED.items() for change in changes]
)
def test_a_field_of_a_text_encoder_that_we_cannot_follow_raises_an_error_that_names_it(
    kind: str, field: str, value: object
) -> None:
    where = Path("text_encoder/config.json")
    fields = text_to_fields(KINDS[kind](**SIZES))
    assert text_from_fields(fields, where) == KINDS[kind](**SIZES)
    with pytest.raises(UserError, match=rf"^{where}.*\b{field}\b") as raised:
        text_from_fields(fields | {field: value}, where)
    assert "\n" not in str(raised.value)


ODD = (None, -1, 10**9, 2.5, "x", [1, 2], {"a": 1}, True)


def message_of(folder: Path) -> str | None:
    """Return the message of the UserError that loading a folder raises, or None; fail for other exceptions."""
    try:
        load_text_encoder(folder)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_any_field_leads_to_anything_but_an_encoder_or_one_line(kind: str, tmp_path: Path) -> None:
    save_text_encoder(random_encoder(KINDS[kind](**SIZES)), tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    messages = []
    for name, value in [(name, value) for name in [*fields, "text_config", "_ldm"] for value in ODD]:
        path.write_text(json.dumps(fields | {name: value}))
        messages.append(message_of(tmp_path))
    errors = [message for message in messages if message is not None]
    assert len(errors) > len(fields)
    assert not any("\n" in message for message in errors)
