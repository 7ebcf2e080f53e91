"""Muon against singular value decompositions, against torch's own, and beside AdamW."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm import config as configuration
from ldm.conditioning.image.encoders import CLIPImageConfig, OwnImageConfig, make_image_encoder
from ldm.conditioning.segmentation_map import SegmentationMapConfig, SpatialRescaler
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.config.training import AutoencoderStageConfig, StageConfig, UNetStageConfig
from ldm.errors import UserError
from ldm.models.classifier import Classifier
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet
from ldm.training.optim.groups import inner_matrices, parameter_groups
from ldm.training.optim.muon import COEFFICIENTS, ITERATIONS, orthogonalized
from ldm.training.optim.optimizers import make_optimizer

DEVICE = torch.device("cpu")


def random_matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (4, 6, 6), (1, 1, 5)])
def test_singular_vectors_stay_and_values_follow_the_polynomial(shape: tuple[int, int, int]) -> None:
    matrices = random_matrix(*shape)
    found = orthogonalized(matrices)
    u, values, v = torch.linalg.svd(matrices / matrices.norm(dim=(1, 2), keepdim=True), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(found, u @ torch.diag_embed(values) @ v, rtol=1e-9, atol=1e-9)


def test_values_spread_over_two_decades_come_near_one_in_single_precision() -> None:
    u, _, v = torch.linalg.svd(random_matrix(1, 64, 200), full_matrices=False)
    matrix = (u @ torch.diag_embed(torch.logspace(-2, 0, 64, dtype=torch.float64)[None]) @ v).float()
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_singular_values_of_zero_do_not_grow_out_of_rounding() -> None:
    matrix = (random_matrix(1, 320, 4) @ random_matrix(1, 4, 2880)).float()
    values = torch.linalg.svdvals(orthogonalized(matrix))[0]
    assert 0.6 < values[3] < values[0] < 1.3
    assert values[4] < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one")
def test_tf32_is_not_used_though_training_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    matrix = (random_matrix(1, 320, 4) @ random_matrix(1, 4, 2880)).float()
    torch.testing.assert_close(orthogonalized(matrix.cuda()).cpu(), orthogonalized(matrix), rtol=0.0, atol=1e-3)
    assert torch.backends.cuda.matmul.allow_tf32


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {"conv_in": nn.Conv2d(3, 8, 3), "conv": nn.Conv2d(8, 8, 3), "other": nn.Conv2d(8, 8, 3)}
    made = nn.ModuleDict({**layers, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "linear": nn.Linear(8, 24)})
    return made.to(memory_format=torch.channels_last)


def gradients(net: nn.Module, step: int) -> None:
    """Noise, whose singular values are all far from zero."""
    for number, weight in enumerate(net.parameters()):
        weight.grad = torch.empty_like(weight).copy_(random_matrix(*weight.shape, seed=100 * step + number))


def test_matrices_step_as_torchs_own_muon_does_and_all_else_as_adamw() -> None:
    """torch's takes matrices alone and computes in bfloat16, hence the tolerance."""
    config = UNetStageConfig(optimizer="muon", weight_decay=0.1, momentum=0.9, betas=(0.8, 0.99))
    net = network()
    optimizer = make_optimizer(parameter_groups(net, 1e-2, {}, config), config)
    before = copy.deepcopy(net)
    matrices = {
        name: nn.Parameter(net[name].weight.detach().flatten(1).clone()) for name in ("conv", "other", "linear")
    }
    options = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon(matrices.values(), **options)
    plain = copy.deepcopy(net)
    rest = {name: weight for name, weight in plain.named_parameters() if name.removesuffix(".weight") not in matrices}
    adamw = torch.optim.AdamW(rest.values(), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99))
    for step in range(3):
        gradients(net, step)
        found = {name: weight.grad.clone() for name, weight in net.named_parameters()}
        for name, matrix in matrices.items():
            matrix.grad = found[f"{name}.weight"].flatten(1)
        for name, weight in rest.items():
            weight.grad = found[name]
        for one in (optimizer, theirs, adamw):
            one.step()
    for name, matrix in matrices.items():
        moved, expected = net[name].weight - before[name].weight, matrix.view_as(net[name].weight) - before[name].weight
        assert (moved - expected).norm() < 0.03 * expected.norm(), name
        assert net[name].weight.stride() == before[name].weight.stride()
    for name, weight in net.named_parameters():
        if name in rest:
            torch.testing.assert_close(weight, rest[name], rtol=1e-6, atol=1e-7)


def test_a_step_of_a_matrix_is_as_large_as_one_of_adamw() -> None:
    net, config = network(), UNetStageConfig(optimizer="muon")
    optimizer = make_optimizer(parameter_groups(net, 1e-3, {}, config), config)
    before = copy.deepcopy(net)
    gradients(net, 0)
    optimizer.step()
    for name in ("conv", "other", "linear"):
        step = (net[name].weight - before[name].weight).square().mean().sqrt()
        assert 0.1e-3 < step < 0.3e-3


def test_first_and_last_layers_biases_and_embeddings_are_adamws_and_rates_hold_for_both() -> None:
    net = nn.ModuleDict({"unet": network(), "text_encoder": nn.ModuleDict({"words": nn.Embedding(9, 4)})})
    net["text_encoder"]["dense"] = nn.Linear(4, 4)
    config = UNetStageConfig(optimizer="muon")
    groups = parameter_groups(net, 1e-3, {"text": 1e-4, "unet.conv.*": 1e-2}, config)
    names = {id(weight): name for name, weight in net.named_parameters()}
    assigned = {names[id(weight)]: (group["lr"], group["orthogonal"]) for group in groups for weight in group["params"]}
    assert assigned == {
        "unet.conv_in.weight": (1e-3, False),
        "unet.conv_in.bias": (1e-3, False),
        "unet.conv.weight": (1e-2, True),
        "unet.conv.bias": (1e-2, False),
        "unet.other.weight": (1e-3, True),
        "unet.other.bias": (1e-3, False),
        "unet.linear.weight": (1e-3, True),
        "unet.linear.bias": (1e-3, False),
        "text_encoder.words.weight": (1e-4, False),
        "text_encoder.dense.weight": (1e-4, True),
        "text_encoder.dense.bias": (1e-4, False),
    }


def test_a_scaler_of_gradients_leaves_out_a_step_that_is_not_finite() -> None:
    net, config = network(), UNetStageConfig(optimizer="muon")
    optimizer = make_optimizer(parameter_groups(net, 1e-3, {}, config), config)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    before = copy.deepcopy(net)
    gradients(net, 0)
    net["conv"].weight.grad[0, 0, 0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), before.parameters(), strict=True))
    assert scaler.get_scale() == 2.0
    gradients(net, 0)
    scaler.step(optimizer)
    assert not any(torch.equal(one, other) for one, other in zip(net.parameters(), before.parameters(), strict=True))


def test_weights_without_gradients_stay() -> None:
    net, config = network(), UNetStageConfig(optimizer="muon")
    optimizer = make_optimizer(parameter_groups(net, 1e-3, {}, config), config)
    before = net["conv"].weight.clone()
    gradients(net, 0)
    net["conv"].weight.grad = None
    optimizer.step()
    assert torch.equal(net["conv"].weight, before)


def test_an_autoencoder_is_not_trained_with_it() -> None:
    with pytest.raises((UserError, ValueError), match="optimizer"):
        AutoencoderStageConfig(optimizer="muon")


@pytest.mark.parametrize("stage", [AutoencoderStageConfig, UNetStageConfig])
def test_momentum_raises_an_error_if_no_optimizer_uses_it(stage: type[StageConfig]) -> None:
    with pytest.raises((UserError, ValueError), match="momentum is an option of optimizer muon"):
        stage(momentum=0.9)


def test_many_matrices_are_orthogonalized_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, calls = [network(), network()], []

    def counted(given: torch.Tensor) -> torch.Tensor:
        calls.append(len(given))
        return orthogonalized(given)

    monkeypatch.setattr("ldm.training.optim.muon.orthogonalized", counted)
    for net, at_once in zip(nets, (2**25, 1), strict=True):
        monkeypatch.setattr("ldm.training.optim.muon.AT_ONCE", at_once)
        config = UNetStageConfig(optimizer="muon")
        optimizer = make_optimizer(parameter_groups(net, 1e-3, {}, config), config)
        gradients(net, 0)
        optimizer.step()
    assert calls == [2, 1, 1, 1, 1, 1, 1]  # the linear layer is higher than wide, and turned in a call of its own
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


CONDITIONED = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "unet": (lambda: UNet(configuration.load("emoji").denoiser), {"conv_in", "conv_out"}),
    "class numbers": (lambda: UNet(UNetConfig(**CONDITIONED)), {"conv_in", "conv_out", "class_embedding"}),
    "classifier": (lambda: Classifier(configuration.load("classifier").need_classifier()), {"conv_in", "head"}),
    "BERT": (lambda: make_text_encoder(BertConfig()), set()),
    "own image encoder": (lambda: make_image_encoder(OwnImageConfig()), {"conv_in"}),
    "CLIP's images": (lambda: make_image_encoder(CLIPImageConfig()), {"vision_model.embeddings.patch_embedding"}),
    "maps": (lambda: SpatialRescaler(SegmentationMapConfig()), {"channel_mapper"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_of_linear_layers_and_convolutions_only_the_ends_are_adamws(name: str) -> None:
    make, ends = NETWORKS[name]
    with torch.device("meta"):
        net = make()
    layers = {name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    assert layers - {name.removesuffix(".weight") for name in inner_matrices(net)} == ends
