"""The original configuration files (OmegaConf's YAML of `main.py` and of `sgm`) <-> what a single file holds.

A `target` is a name in a table, never a thing to import; a parameter that we do not know is refused by its name.
"""

from __future__ import annotations

from typing import Any

from ldm.checkpoint.compvis.autoencoder_params import KINDS, autoencoder_from_target, autoencoder_to_target
from ldm.checkpoint.compvis.condition_params import condition_from_target, condition_to_target
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.params import Group, Params, Target, expect_options, inexpressible, refused
from ldm.checkpoint.compvis.unet_params import unet_from_params, unet_to_params
from ldm.config import DiffusionConfig, Section, SpatialConfig, parse
from ldm.config.diffusion import BETA_KINDS
from ldm.errors import UserError

UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"
SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}  # theirs: ours
PREDICTIONS = {"eps": "eps", "x0": "x0", "v": "v"}
SGM_PREDICTIONS = {"EpsScaling": "eps", "VScaling": "v"}
SGM_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
SGM_EMBEDDERS = ("FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder2")
TRAINING = (
    "num_timesteps_cond cond_stage_key cond_stage_trainable first_stage_key log_every_t monitor use_ema loss_type "
    "scheduler_config ckpt_path ignore_keys load_only_unet l_simple_weight original_elbo_weight v_posterior "
    "learn_logvar logvar_init clip_denoised use_positional_encodings conditioning_key concat_mode channels "
    "scale_by_std force_null_conditioning make_it_fit ucg_training reset_ema reset_num_ema_updates keep_num_ema_updates"
).split()
SGM_TRAINING = (
    "optimizer_config scheduler_config loss_fn_config sampler_config network_wrapper ckpt_path use_ema ema_decay_rate "
    "disable_first_stage_autocast input_key log_keys no_cond_log compile_model en_and_decode_n_samples_a_time"
).split()
SGM = "sgm.modules"


def contents_from_original(tree: Any, where: str) -> Contents:
    """What a file with such a configuration holds; UserError names what we cannot follow."""
    if not isinstance(tree, dict) or "model" not in tree:
        raise refused(f"{where}: the section model", None)
    model = Target(tree["model"], f"{where}: model")
    if model.kind in KINDS:
        return Contents(autoencoder=autoencoder_from_target(model))
    contents: Contents = model.need(MODELS)(model.params)
    model.params.finish()
    return contents


def _latent_diffusion(params: Group) -> Contents:
    params.skip(*TRAINING)
    params.expect(given_betas=None, cosine_s=8e-3)
    autoencoder = autoencoder_from_target(params.target("first_stage_config"), params.take("scale_factor", 1.0))
    network = params.target("unet_config")
    network.need({"UNetModel": None})
    unet, heads_first = unet_from_params(network.params)
    if (size := params.take("image_size", None)) is not None:
        unet = unet.model_copy(update={"sample_size": size})
    joined = unet.in_channels - autoencoder.latent_channels
    conditions = _conditions(params, joined, autoencoder.latent_channels)
    schedule = {
        "kind": params.choose("beta_schedule", SCHEDULES, "linear"),
        "num_train_timesteps": params.number("timesteps", 1000),
    }
    ends = {"beta_start": params.take("linear_start", 1e-4), "beta_end": params.take("linear_end", 2e-2)}
    diffusion = {
        "schedule": schedule | (ends if schedule["kind"] in BETA_KINDS else {}),
        "prediction": params.choose("parameterization", PREDICTIONS, "eps"),
    }
    return Contents(
        autoencoder=autoencoder,
        unet=unet,
        diffusion=parse(diffusion, DiffusionConfig, params.where),
        attention_order="heads" if heads_first else "kinds",
        **conditions,
    )


def _conditions(params: Group, joined: int, latent_channels: int) -> dict[str, Any]:
    """The sections of the condition stage, where `joined` channels of the U-Net's input are not latents."""
    asked = params.left.get("cond_stage_config", UNCONDITIONAL)
    if asked == UNCONDITIONAL:
        params.skip("cond_stage_config")
        return {}
    if asked == FIRST_STAGE:
        params.skip("cond_stage_config")
        tree = {"kind": "inpainting", "in_channels": joined - latent_channels, "channels": joined}
        return {"spatial": parse(tree, SpatialConfig, f"{params.where}.cond_stage_config")}
    return condition_from_target(params.target("cond_stage_config"), joined)


def _diffusion_engine(params: Group) -> Contents:
    """SDXL, the one model of `sgm` that we have."""
    params.skip(*SGM_TRAINING)
    text, text_2, size_width = _sgm_conditions(params.target("conditioner_config"))
    network = params.target("network_config")
    network.need({"UNetModel": None})
    unet, _ = unet_from_params(network.params, size_width)
    autoencoder = autoencoder_from_target(params.target("first_stage_config"), params.take("scale_factor", 1.0))
    diffusion = _sgm_diffusion(params.target("denoiser_config"))
    return Contents(
        autoencoder=autoencoder,
        unet=unet,
        diffusion=diffusion,
        text=text,
        text_2=text_2,
        zeros_for_empty_prompt=True,  # as its sampling script does
    )


def _sgm_conditions(conditioner: Target) -> tuple[Section, Section, int]:
    """Both text encoders, and the channels of the embedding of each size."""
    conditioner.need({"GeneralConditioner": None})
    where = f"{conditioner.where}.params.emb_models"
    models = [Target(tree, where) for tree in conditioner.params.take("emb_models")]
    conditioner.params.finish()
    kinds = [model.kind for model in models]
    if kinds != [*SGM_EMBEDDERS, *["ConcatTimestepEmbedderND"] * len(SGM_SIZES)]:
        raise refused(where, kinds)
    text, text_2 = (condition_from_target(model, 0)["text"] for model in models[:2])
    widths = [model.params.number("outdim") for model in models[2:]]
    if len(set(widths)) != 1:
        raise refused(f"{where}.outdim", widths)
    return text, text_2, widths[0]


def _sgm_diffusion(denoiser: Target) -> DiffusionConfig:
    denoiser.need({"DiscreteDenoiser": None})
    denoiser.params.skip("weighting_config", "network_config")
    denoiser.params.expect(do_append_zero=False, quantize_c_noise=True, flip=True)
    prediction = denoiser.params.target("scaling_config").need(SGM_PREDICTIONS)
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


MODELS = {
    "LatentDiffusion": _latent_diffusion,
    "Layout2ImgDiffusion": _latent_diffusion,
    "DiffusionEngine": _diffusion_engine,
}


def original_from_contents(contents: Contents) -> Params:
    """The original's configuration; UserError names an option that it has no parameter for."""
    if contents.autoencoder is None or contents.unet is None:
        return {"model": _network_to_target(contents)}
    return {"model": _sgm_to_target(contents) if contents.text_2 is not None else _latent_diffusion_to_target(contents)}


def check_expressible(contents: Contents) -> None:
    """Raise UserError for an option of the networks or the schedule that the original does not have.

    Sizes of text encoders, which it knows by name alone, are not checked.
    """
    if contents.unet is not None:
        unet_to_params(contents.unet)
    if contents.autoencoder is not None:
        autoencoder_to_target(contents.autoencoder)
    if contents.diffusion is not None:
        _schedule_to_params(contents.diffusion)


def _network_to_target(contents: Contents) -> Params:
    if contents.autoencoder is None:
        raise UserError("a U-Net alone has no configuration in the original's form: convert a whole model")
    return autoencoder_to_target(contents.autoencoder, alone=True)


def _latent_diffusion_to_target(contents: Contents) -> Params:
    assert contents.unet is not None and contents.autoencoder is not None
    diffusion = contents.diffusion or DiffusionConfig()
    schedule = diffusion.schedule
    params: Params = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.num_train_timesteps,
        **_schedule_to_params(diffusion),
        "image_size": contents.unet.sample_size,
        "channels": contents.autoencoder.latent_channels,
        "scale_factor": contents.autoencoder.scaling_factor or 1.0,
        "conditioning_key": _conditioning_key(contents),
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel"}
        | {"params": unet_to_params(contents.unet)},
        "first_stage_config": autoencoder_to_target(contents.autoencoder),
        "cond_stage_config": _condition_to_target(contents),
    }
    return {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}


def _schedule_to_params(diffusion: DiffusionConfig) -> Params:
    schedule = diffusion.schedule
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    if schedule.kind not in names:
        raise inexpressible("diffusion.schedule.kind", schedule.kind, " or ".join(names))
    expect_options("diffusion.schedule", schedule, {"zero_terminal_snr": False})
    expect_options("diffusion", diffusion, {"learned_variance": False})
    params: Params = {}
    if schedule.kind != "scaled_linear":
        params["beta_schedule"] = names[schedule.kind]
    if diffusion.prediction not in PREDICTIONS:
        raise inexpressible("diffusion.prediction", diffusion.prediction, " or ".join(PREDICTIONS))
    if diffusion.prediction != "eps":
        params["parameterization"] = diffusion.prediction
    return params


def _conditioning_key(contents: Contents) -> str | None:
    attends = contents.text is not None or contents.classes is not None
    if attends and contents.spatial is not None:
        raise inexpressible("spatial", contents.spatial.kind, "null with text or classes")
    return "crossattn" if attends else None if contents.spatial is None else "concat"


def _condition_to_target(contents: Contents) -> Params | str:
    if contents.spatial is not None and contents.spatial.kind == "inpainting":
        return FIRST_STAGE
    for name in ("text", "classes", "spatial"):
        section = getattr(contents, name)
        if section is not None:
            return condition_to_target(section, name)
    return UNCONDITIONAL


def _sgm_to_target(contents: Contents) -> Params:
    """SDXL's configuration."""
    assert contents.unet is not None and contents.autoencoder is not None and contents.text_2 is not None
    diffusion = contents.diffusion or DiffusionConfig()
    schedule = diffusion.schedule
    if schedule.kind != "scaled_linear" or schedule.zero_terminal_snr:
        raise inexpressible("diffusion.schedule.kind", schedule.kind, "scaled_linear, without zero_terminal_snr")
    scalings = {ours: theirs for theirs, ours in SGM_PREDICTIONS.items()}
    if diffusion.prediction not in scalings:
        raise inexpressible("diffusion.prediction", diffusion.prediction, " or ".join(scalings))
    discretization = {"linear_start": schedule.beta_start, "linear_end": schedule.beta_end}
    denoiser = {
        "num_idx": schedule.num_train_timesteps,
        "scaling_config": {"target": f"{SGM}.diffusionmodules.denoiser_scaling.{scalings[diffusion.prediction]}"},
        "discretization_config": {
            "target": f"{SGM}.diffusionmodules.discretizer.LegacyDDPMDiscretization",
            "params": discretization | {"num_timesteps": schedule.num_train_timesteps},
        },
    }
    texts = [condition_to_target(section, name) for name in ("text", "text_2") if (section := getattr(contents, name))]
    width = contents.unet.addition_time_embed_dim
    embedder = {"target": f"{SGM}.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": width}}
    models = [{"is_trainable": False, "input_key": "txt", **text} for text in texts]
    models += [{"is_trainable": False, "input_key": name, **embedder} for name in SGM_SIZES]
    params: Params = {
        "scale_factor": contents.autoencoder.scaling_factor or 1.0,
        "denoiser_config": {"target": f"{SGM}.diffusionmodules.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{SGM}.diffusionmodules.openaimodel.UNetModel"}
        | {"params": unet_to_params(contents.unet)},
        "conditioner_config": {"target": f"{SGM}.GeneralConditioner", "params": {"emb_models": models}},
        "first_stage_config": autoencoder_to_target(contents.autoencoder),
    }
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}
