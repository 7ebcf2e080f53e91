"""Configuration files: what is read, and what is refused with which words."""

import pytest
import yaml

from ldm import config
from ldm.config import Config
from ldm.errors import UserError


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_configuration_is_valid(name: str) -> None:
    assert isinstance(config.load(name), Config)


def test_a_dumped_configuration_reads_back_equal(tmp_path) -> None:
    path = tmp_path / "copy.yaml"
    original = config.load("tiny", ["training.seed=7", "loss.kl.weight=1e-5"])
    path.write_text(config.dump(original))
    assert config.load(path) == original
    assert original.training.seed == 7
    assert original.loss.kl.weight == 1e-5


def test_an_unknown_option_is_refused_with_its_path_and_the_nearest_name(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"unet": {"layers_per_blok": 3}}))
    with pytest.raises(UserError, match=r"unknown option 'unet.layers_per_blok'; did you mean 'layers_per_block'"):
        config.load(path)


def test_an_ill_typed_option_is_refused_with_its_path() -> None:
    with pytest.raises(UserError, match=r"training\.unet\.batch_size: Input should be a valid integer"):
        config.load("tiny", ["training.unet.batch_size=many"])


def test_a_missing_configuration_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no configuration 'tinny': neither a file nor one of .*tiny"):
        config.load("tinny")


@pytest.mark.parametrize("override", ["data.size", "=3", "data.size.x=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"--set "):
        config.load("tiny", ["data.size=32", override])


def test_something_else_than_a_mapping_is_refused(tmp_path) -> None:
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
        (["diffusion.prediction=eps"], "eps says nothing about the picture where alpha is 0"),
        (["unet.out_channels=8"], "they must be equal"),
        (["diffusion.learned_variance=true"], "unet.out_channels is 4, .* is 4: with diffusion.learned_variance"),
        (["diffusion.weighting.kind=vlb", *FLOW], "weighting.kind vlb comes from the bound over steps"),
        (["diffusion.learned_variance=true", *FLOW], "learned_variance comes from the bound over steps"),
        ([*FLOW, "diffusion.prediction=eps"], "eps says nothing .* as schedule.kind flow starts"),
        (["diffusion.schedule.shift=3"], "shift means something for kind flow alone, not for scaled_linear"),
        (["diffusion.schedule.training_times=logit_normal"], "training_times means something for kind flow alone"),
        ([*FLOW, "diffusion.schedule.logit_std=2"], "logit_std means something for training_times logit_normal alone"),
        ([*FLOW, "diffusion.schedule.beta_end=0.02"], "beta_end means something for kind linear, scaled_linear"),
        (["diffusion.schedule.kind=cosine", "diffusion.schedule.beta_start=0.1"], "beta_start means something"),
        (["diffusion.schedule.kind=flow"], "zero_terminal_snr means something for kind linear"),
        (["diffusion.weighting.gamma=3"], "gamma means something for kind min_snr, soft_min_snr alone"),
        (["diffusion.weighting.p2_k=3"], "p2_k means something for kind p2 alone, not for uniform"),
        (["unet.cross_attention_dim=8"], "they must be equal"),
        (["data.size=30"], "not divisible"),
        (["unet.attention_layers=[1]"], "1 entries for 2 levels"),
        (["unet.num_attention_heads=[1]"], "1 entries for 2 levels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load("tiny", overrides)


@pytest.mark.parametrize("overrides", [FLOW, ["diffusion.learned_variance=true", "unet.out_channels=8"]])
def test_flow_and_learned_variance_fit_a_shipped_configuration(overrides: list[str]) -> None:
    assert isinstance(config.load("tiny", overrides), Config)
