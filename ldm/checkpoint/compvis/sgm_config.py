"""SDXL's configuration in `sgm` (Podell et al. 2024) <-> the contents of a single file."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.checkpoint.compvis.autoencoder_params import autoencoder_from_target, autoencoder_to_target
from ldm.checkpoint.compvis.condition_params import condition_from_target, condition_to_target, spatial_beside_text
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.params import Group, Params, Target, expect_options, inexpressible, refused
from ldm.checkpoint.compvis.unet_params import unet_from_params, unet_to_params
from ldm.config.diffusion import DiffusionConfig
from ldm.config.section import Section, parse

PREDICTIONS = {"EpsScaling": "eps", "VScaling": "v"}
# Numbers that are embedded, and text encoders: of SDXL base and of its refiner.
SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
SCORES = (*SIZES[:2], "aesthetic_score")
EMBEDDERS = ("FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder2")
TRAINING = [
    "optimizer_config",
    "scheduler_config",
    "loss_fn_config",
    "sampler_config",
    "network_wrapper",
    "ckpt_path",
    "use_ema",
    "ema_decay_rate",
    "disable_first_stage_autocast",
    "input_key",
    "log_keys",
    "no_cond_log",
    "compile_model",
    "en_and_decode_n_samples_a_time",
]
MODULES = "sgm.modules"
MODELS = ((EMBEDDERS, SIZES), (EMBEDDERS[1:], SCORES))


def diffusion_engine(params: Group) -> Contents:
    """Convert the parameters of SDXL, base or refiner, the only supported models of `sgm`."""
    where = params.where
    params.skip(*TRAINING)
    texts, size_width = _conditions(params.target("conditioner_config"))
    network = params.target("network_config")
    network.need({"UNetModel": None})
    unet, _ = unet_from_params(network.params, size_width)
    autoencoder = autoencoder_from_target(params.target("first_stage_config"), params.take("scale_factor", 1.0))
    diffusion = _diffusion(params.target("denoiser_config"))
    return Contents(
        autoencoder=autoencoder,
        unet=unet,
        diffusion=diffusion,
        zeros_for_empty_prompt="text_2" in texts,  # as in its sampling script
        **texts,
        **spatial_beside_text(unet.in_channels - autoencoder.latent_channels, autoencoder.latent_channels, where),
    )


def _conditions(conditioner: Target) -> tuple[dict[str, Section], int]:
    """Return the sections of the text encoders, and the width of the embedding of each number."""
    conditioner.need({"GeneralConditioner": None})
    where = f"{conditioner.where}.params.emb_models"
    trees = conditioner.params.take("emb_models")
    conditioner.params.finish()
    if not isinstance(trees, list):
        raise refused(where, trees)
    models = [Target(tree, where) for tree in trees]
    found = [(model.kind, tree.get("input_key")) for model, tree in zip(models, trees, strict=True)]
    kinds = {tuple(_embedders(texts, numbers)): len(texts) for texts, numbers in MODELS}
    if tuple(found) not in kinds:
        raise refused(where, found)
    count = kinds[tuple(found)]
    texts = {
        name: condition_from_target(model, 0)["text"]
        for name, model in zip(("text", "text_2"), models[:count], strict=False)
    }
    widths = [model.params.number("outdim") for model in models[count:]]
    if len(set(widths)) != 1:
        raise refused(f"{where}.outdim", widths)
    return texts, widths[0]


def _embedders(texts: Sequence[str], numbers: Sequence[str]) -> list[tuple[str, str]]:
    """Return class and input of each embedder."""
    return [*((kind, "txt") for kind in texts), *(("ConcatTimestepEmbedderND", name) for name in numbers)]


def _diffusion(denoiser: Target) -> DiffusionConfig:
    denoiser.need({"DiscreteDenoiser": None})
    denoiser.params.skip("weighting_config", "network_config")
    denoiser.params.expect(do_append_zero=False, quantize_c_noise=True, flip=True)
    prediction = denoiser.params.target("scaling_config").need(PREDICTIONS)
    table = denoiser.params.target("discretization_config")
    table.need({"LegacyDDPMDiscretization": None})
    schedule = {
        "kind": "scaled_linear",
        "beta_start": table.params.take("linear_start", 0.00085),
        "beta_end": table.params.take("linear_end", 0.012),
        "num_train_timesteps": denoiser.params.number("num_idx"),
    }
    table.params.expect(num_timesteps=schedule["num_train_timesteps"])
    table.params.finish()
    denoiser.params.finish()
    return parse({"schedule": schedule, "prediction": prediction}, DiffusionConfig, denoiser.where)


def diffusion_engine_to_target(contents: Contents) -> Params:
    """Convert the contents of a single file to SDXL's original configuration of `DiffusionEngine`.

    Raises:
        UserError: if that configuration has no parameter for an option.
    """
    unet, autoencoder = contents.unet, contents.autoencoder
    assert unet is not None
    assert autoencoder is not None
    names = [name for name in ("text", "text_2") if getattr(contents, name) is not None]
    texts = [condition_to_target(getattr(contents, name), name) for name in names]
    outdim = {"outdim": unet.addition_time_embed_dim}
    embedder = {"target": f"{MODULES}.encoders.modules.ConcatTimestepEmbedderND", "params": outdim}
    models = [{"is_trainable": False, "input_key": "txt", **text} for text in texts]
    models += [
        {"is_trainable": False, "input_key": name, **embedder} for name in (SIZES if len(names) == 2 else SCORES)
    ]
    network = {"target": f"{MODULES}.diffusionmodules.openaimodel.UNetModel", "params": unet_to_params(unet)}
    params: Params = {
        "scale_factor": autoencoder.scaling_factor or 1.0,
        "denoiser_config": _diffusion_to_target(contents.diffusion or DiffusionConfig()),
        "network_config": network,
        "conditioner_config": {"target": f"{MODULES}.GeneralConditioner", "params": {"emb_models": models}},
        "first_stage_config": autoencoder_to_target(autoencoder),
    }
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}


def _diffusion_to_target(diffusion: DiffusionConfig) -> Params:
    schedule = diffusion.schedule
    expect_options("diffusion.schedule", schedule, {"kind": "scaled_linear", "zero_terminal_snr": False})
    expect_options("diffusion", diffusion, {"learned_variance": False, "variance": "small", "clipping": None})
    scalings = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if diffusion.prediction not in scalings:
        raise inexpressible("diffusion.prediction", diffusion.prediction, " or ".join(scalings))
    betas = schedule.model_dump(include={"beta_start", "beta_end"})
    table = {
        **{name.replace("beta", "linear"): value for name, value in betas.items()},
        "num_timesteps": schedule.num_train_timesteps,
    }
    parts = f"{MODULES}.diffusionmodules"
    params: Params = {
        "num_idx": schedule.num_train_timesteps,
        "scaling_config": {"target": f"{parts}.denoiser_scaling.{scalings[diffusion.prediction]}"},
        "discretization_config": {"target": f"{parts}.discretizer.LegacyDDPMDiscretization", "params": table},
    }
    return {"target": f"{parts}.denoiser.DiscreteDenoiser", "params": params}
