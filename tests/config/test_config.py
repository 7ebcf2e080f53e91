"""Reading configuration files, and the errors for invalid ones."""

import pytest
import yaml

from ldm import config
from ldm.config.root import Config
from ldm.config.section import dump
from ldm.errors import UserError


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_configuration_is_valid(name: str) -> None:
    assert isinstance(config.load(name), Config)


def test_a_dumped_configuration_reads_back_equal(tmp_path) -> None:
    path = tmp_path / "copy.yaml"
    original = config.load("tiny", ["training.seed=7", "loss.kl.weight=1e-5"])
    path.write_text(dump(original))
    assert config.load(path) == original
    assert original.training.seed == 7
    assert original.loss.kl.weight == 1e-5


def test_an_unknown_option_raises_an_error_with_its_path_and_the_nearest_name(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"unet": {"layers_per_blok": 3}}))
    with pytest.raises(UserError, match=r"unknown option 'unet.layers_per_blok'; did you mean 'layers_per_block'"):
        config.load(path)


def test_an_option_of_the_wrong_type_raises_an_error_with_its_path() -> None:
    with pytest.raises(UserError, match=r"training\.unet\.batch_size: Input should be a valid integer"):
        config.load("tiny", ["training.unet.batch_size=many"])


def test_a_bare_no_which_yaml_takes_for_false_is_a_precision(tmp_path) -> None:
    assert config.load("emoji", ["training.unet.mixed_precision=no"]).training.unet.mixed_precision == "no"
    path = tmp_path / "bare.yaml"
    path.write_text("training: {autoencoder: {mixed_precision: no}}\n")
    assert config.load(path).training.autoencoder.mixed_precision == "no"
    with pytest.raises(UserError, match="mixed_precision"):
        config.load("emoji", ["training.unet.mixed_precision=yes"])


def test_a_missing_configuration_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no configuration 'tinny': give a file or one of .*tiny"):
        config.load("tinny")


@pytest.mark.parametrize("override", ["data.size", "=3", "data.size.x=3"])
def test_a_malformed_override_raises_an_error(override: str) -> None:
    with pytest.raises(UserError, match=r"--set "):
        config.load("tiny", ["data.size=32", override])


def test_a_configuration_that_is_not_a_mapping_raises_an_error(tmp_path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="mapping of sections"):
        config.load(path)
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        config.load(path)


FLOW = ["diffusion.prediction=flow", "diffusion.schedule={kind: flow}"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["diffusion.prediction=eps"], "prediction eps cannot recover the image from pure noise"),
        (["unet.out_channels=8"], "unet.out_channels is 8, but autoencoder.latent_channels is 4: they must be equal"),
        (
            ["diffusion.learned_variance=true"],
            "unet.out_channels is 4, .* is 4: with diffusion.learned_variance it must be 8",
        ),
        (["diffusion.weighting.kind=vlb", *FLOW], "weighting.kind vlb needs discrete timesteps"),
        (
            ["diffusion.learned_variance=true", *FLOW],
            "learned_variance needs discrete timesteps",
        ),
        ([*FLOW, "diffusion.prediction=eps"], "eps cannot recover .* where schedule.kind flow .* starts"),
        (["diffusion.schedule.shift=3"], "schedule: shift is an option of kind flow, not of scaled_linear"),
        (["diffusion.schedule.training_times=logit_normal"], "training_times is an option of kind flow"),
        (
            [*FLOW, "diffusion.schedule.logit_std=2"],
            "logit_std is an option of training_times logit_normal",
        ),
        (
            [*FLOW, "diffusion.schedule.beta_end=0.02"],
            "beta_end is an option of kind linear, scaled_linear",
        ),
        (
            ["diffusion.schedule.kind=cosine", "diffusion.schedule.beta_start=0.1"],
            "beta_start is an option",
        ),
        (["diffusion.schedule.kind=flow"], "zero_terminal_snr is an option of kind linear"),
        (["diffusion.weighting.gamma=3"], "gamma is an option of kind min_snr, soft_min_snr, not of uniform"),
        (["diffusion.weighting.p2_k=3"], "p2_k is an option of kind p2, not of uniform"),
        (["unet.cross_attention_dim=8"], "they must be equal"),
        (["data.size=30"], "data.size is 30, which the autoencoder's downsampling factor 4 does not divide"),
        (["unet.attention_layers=[1]"], "1 entries for 2 levels"),
        (["unet.num_attention_heads=[1]"], "1 entries for 2 levels"),
    ],
)
def test_components_that_do_not_fit_raise_an_error(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load("tiny", overrides)


@pytest.mark.parametrize("overrides", [FLOW, ["diffusion.learned_variance=true", "unet.out_channels=8"]])
def test_flow_and_learned_variance_fit_a_shipped_configuration(overrides: list[str]) -> None:
    assert isinstance(config.load("tiny", overrides), Config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["text.kind=gpt"], "text.kind: Input should be one of 'bert', 'ldm_bert', 'clip', 'open_clip', 't5'"),
        (["text_2={kind: clip, layers: 3}"], "unknown option 'text_2.layers'; did you mean 'layer'?"),
        (["text={kind: clip, nope: 1}"], "unknown option 'text.nope'; known here: .*source, frozen,"),
        (["text={kind: clip, max_length: many}"], "text.max_length: Input should be a valid integer"),
        (["text={kind: clip, layer: first}"], "text.layer: Input should be 'last' or 'penultimate'"),
        (["text={kind: bert, hidden_size: 30}"], "text: hidden_size 30 is not divisible by num_attention_heads 4"),
        (["text=words"], "text: Input should be a valid dictionary"),
        (["classes={num_clases: 3}"], "unknown option 'classes.num_clases'; did you mean 'num_classes'?"),
        (["classes={num_classes: 3}"], "text and classes each give the denoiser a context: set one of them to null"),
        (["text=null", "classes={num_classes: 0}"], "classes.num_classes: Input should be greater than or equal to 1"),
        (["text=null", "classes={hidden_size: 8}"], r"is 64, but the context has classes.hidden_size \(8\): they must"),
        (["text=null", "text_2={kind: clip}"], "text_2 is a second text encoder: set text as well"),
        (["text=null"], "unet.cross_attention_dim is 64, but the context has no text, classes or image: they must be"),
        (
            ["spatial={kind: sketch}"],
            "spatial.kind: Input should be one of 'segmentation_map', 'inpainting', 'low_resolution'",
        ),
        (
            ["spatial={kind: segmentation_map, stages: 2}"],
            r"unet.in_channels is 4, but .*latent_channels \(4\) \+ spatial.channels \(3\) is 7: they must be equal",
        ),
        (
            ["spatial={kind: segmentation_map, stages: 1}", "unet.in_channels=7"],
            "spatial.stages is 1, .* 2 times smaller, but latents are 4 times smaller .*: set spatial.stages to 2",
        ),
        (
            ["spatial={kind: inpainting, in_channels: 1, channels: 3}", "unet.in_channels=7"],
            r"spatial.channels is 3, but autoencoder.latent_channels \(4\) \+ spatial.in_channels is 5: set it to 5",
        ),
        (
            ["spatial={kind: low_resolution, channels: 4}", "unet.in_channels=8"],
            "spatial.channels is 4, but spatial.in_channels is 3: set it to 3",
        ),
        (
            ["text=null", "image={hidden_size: 64}", "spatial={kind: low_resolution}", "unet.in_channels=7"],
            "image and spatial would need two images for each sample: set one of them to null",
        ),
        (
            ["spatial={kind: low_resolution, stages: 1}", "unet.in_channels=7"],
            "unknown option 'spatial.stages'; known here: kind, in_channels, channels",
        ),
        (["unet=null"], "unet is null, but text is set: set text to null as well"),
        (["unet.block_out_channels=[32, wide]"], "unet.block_out_channels.1: Input should be a valid integer"),
        (["unet.attention=full"], "unet.attention: Input should be 'transformer' or 'plain'"),
        (["unet.attention=plain"], "attention plain has no context: set cross_attention_dim to null"),
        (["unet.class_embed_type=projection"], "projection_class_embeddings_input_dim is required by class_embed_type"),
        (["autoencoder.kind=vq"], "autoencoder.codebook_size: Field required"),
        (["autoencoder.codebook_size=8"], "unknown option 'autoencoder.codebook_size'"),
        (["autoencoder.attention_levels=[3]"], "attention_levels has level 3, but there are levels 0 to 2"),
    ],
)
def test_invalid_conditions_and_networks_raise_a_one_line_error_that_names_the_option(
    overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as raised:
        config.load("tiny", overrides)
    assert "\n" not in str(raised.value)


def test_a_file_may_describe_an_autoencoder_alone_and_says_so_when_a_u_net_is_asked_for(tmp_path) -> None:
    alone = config.load("tiny", ["unet=null", "text=null"])
    path = tmp_path / "alone.yaml"
    path.write_text(dump(alone))
    assert config.load(path) == alone
    with pytest.raises(UserError, match="has no denoiser: add a section unet"):
        _ = alone.denoiser
