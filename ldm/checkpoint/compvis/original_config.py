"""The original configuration files (YAML of latent-diffusion and of `sgm`) <-> the contents of a single file.

A `target` is looked up in a table and never imported; an unknown parameter is an error that names it.
"""

from __future__ import annotations

from typing import Any

from ldm.checkpoint.compvis.autoencoder_params import (
    autoencoder_from_target,
    autoencoder_to_target,
    kinds_of_autoencoders,
)
from ldm.checkpoint.compvis.condition_params import condition_from_target, condition_to_target, spatial_beside_text
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.params import Group, Params, Target, expect_options, inexpressible, refused
from ldm.checkpoint.compvis.sgm_config import diffusion_engine, diffusion_engine_to_target
from ldm.checkpoint.compvis.unet_params import unet_from_params, unet_to_params
from ldm.conditioning.inpainting import InpaintingConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.config.section import parse
from ldm.errors import UserError

UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"
SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}  # theirs: ours
PREDICTIONS = {"eps": "eps", "x0": "x0", "v": "v"}
TRAINING = [
    "num_timesteps_cond",
    "cond_stage_key",
    "cond_stage_trainable",
    "first_stage_key",
    "log_every_t",
    "monitor",
    "use_ema",
    "loss_type",
    "scheduler_config",
    "ckpt_path",
    "ignore_keys",
    "load_only_unet",
    "l_simple_weight",
    "original_elbo_weight",
    "v_posterior",
    "learn_logvar",
    "logvar_init",
    "clip_denoised",
    "use_positional_encodings",
    "concat_mode",
    "channels",
    "force_null_conditioning",
    "make_it_fit",
    "ucg_training",
    "reset_ema",
    "reset_num_ema_updates",
    "keep_num_ema_updates",
    "load_ema",
    "finetune_keys",
    "keep_finetune_dims",
    "masked_image_key",
    "c_concat_log_start",
    "c_concat_log_end",
]
BESIDE_TEXT = ("inpainting", "image_edit")  # kinds of `spatial` that models of text have
MASK_KEYS = ["mask", "masked_image"]  # the order of the channels of inpainting models
# Models of the original that ldm does not have.
FAMILIES = {
    "LatentDepth2ImageDiffusion": "Stable Diffusion 2 with a depth map",
    "LatentUpscaleDiffusion": "the x4 upscaler of Stable Diffusion 2",
    "LatentUpscaleFinetuneDiffusion": "the x4 upscaler of Stable Diffusion 2",
    "ImageEmbeddingConditionedLatentDiffusion": "Stable unCLIP",
    "ControlLDM": "a ControlNet",
}


def contents_from_original(tree: Any, where: str) -> Contents:
    """Convert a configuration of the original to contents.

    Raises:
        UserError: for an unsupported parameter.
    """
    if not isinstance(tree, dict) or "model" not in tree:
        raise refused(f"{where}: the section model", None)
    model = Target(tree["model"], f"{where}: model")
    if model.kind in kinds_of_autoencoders():
        return Contents(autoencoder=autoencoder_from_target(model))
    if model.kind in FAMILIES:
        raise UserError(f"{where}: model.target {model.kind} is {FAMILIES[model.kind]}, which ldm does not support")
    contents: Contents = model.need(MODELS)(model.params)
    model.params.finish()
    return contents


def _latent_diffusion(params: Group) -> Contents:
    params.skip(*TRAINING)
    params.expect(given_betas=None, cosine_s=8e-3)
    scale, measured = (
        params.take("scale_factor", 1.0),
        params.take("scale_by_std", False),
    )  # then the scale is in the file
    autoencoder = autoencoder_from_target(params.target("first_stage_config"), None if measured else scale)
    network = params.target("unet_config")
    network.need({"UNetModel": None})
    unet, heads_first = unet_from_params(network.params)
    unet = unet.model_copy(update={"sample_size": params.number("image_size", unet.sample_size)})
    params.choose("conditioning_key", dict.fromkeys((None, "None", "crossattn", "concat", "hybrid")), None)
    params.expect(concat_keys=MASK_KEYS)
    joined = unet.in_channels - autoencoder.latent_channels
    conditions = _conditions(params, joined, autoencoder.latent_channels)
    return Contents(
        autoencoder=autoencoder,
        unet=unet,
        diffusion=_diffusion(params),
        attention_order="heads" if heads_first else "kinds",
        **conditions,
    )


def _diffusion(params: Group) -> DiffusionConfig:
    kind = params.choose("beta_schedule", SCHEDULES, "linear")
    schedule = {"kind": kind, "num_train_timesteps": params.number("timesteps", 1000)}
    ends = {"beta_start": params.take("linear_start", 1e-4), "beta_end": params.take("linear_end", 2e-2)}
    tree = {
        "schedule": schedule | ({} if kind == "cosine" else ends),
        "prediction": params.choose("parameterization", PREDICTIONS, "eps"),
    }
    return parse(tree, DiffusionConfig, params.where)


def _conditions(params: Group, joined: int, latent_channels: int) -> dict[str, Any]:
    """Convert the condition stage to sections; `joined` channels of the U-Net's input are not latents."""
    asked = params.left.get("cond_stage_config", UNCONDITIONAL)
    if asked == UNCONDITIONAL:
        params.skip("cond_stage_config")
        return {}
    if asked == FIRST_STAGE:
        params.skip("cond_stage_config")
        tree = {"in_channels": joined - latent_channels, "channels": joined}
        return {"spatial": parse(tree, InpaintingConfig, f"{params.where}.cond_stage_config")}
    sections = condition_from_target(params.target("cond_stage_config"), joined)
    return sections | (spatial_beside_text(joined, latent_channels, params.where) if "text" in sections else {})


MODELS = {
    "LatentDiffusion": _latent_diffusion,
    "LatentInpaintDiffusion": _latent_diffusion,
    "Layout2ImgDiffusion": _latent_diffusion,
    "DiffusionEngine": diffusion_engine,
}


def original_from_contents(contents: Contents) -> Params:
    """Convert contents to a configuration of the original.

    Raises:
        UserError: for an option without a parameter.
    """
    if contents.autoencoder is None or contents.unet is None:
        return {"model": _network_to_target(contents)}
    return {
        "model": diffusion_engine_to_target(contents) if contents.is_sdxl else _latent_diffusion_to_target(contents)
    }


def check_expressible(contents: Contents) -> None:
    """Raise UserError for an option of the networks or the schedule that the original does not have.

    Sizes of text encoders, which it identifies by name only, are not checked.
    """
    if contents.unet is not None:
        unet_to_params(contents.unet)
        _conditioning_key(contents)
    if contents.autoencoder is not None:
        autoencoder_to_target(contents.autoencoder)
    if contents.diffusion is not None:
        _schedule_to_params(contents.diffusion)


def _network_to_target(contents: Contents) -> Params:
    if contents.autoencoder is None:
        raise UserError("the original has no configuration for a single U-Net: convert a whole model")
    return autoencoder_to_target(contents.autoencoder, alone=True)


def _latent_diffusion_to_target(contents: Contents) -> Params:
    assert contents.unet is not None
    assert contents.autoencoder is not None
    diffusion = contents.diffusion or DiffusionConfig()
    params: Params = {
        "timesteps": diffusion.schedule.num_train_timesteps,
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
    return {"target": f"ldm.models.diffusion.{_model(contents)}", "params": params}


def _model(contents: Contents) -> str:
    kind = None if contents.text is None or contents.spatial is None else contents.spatial.kind
    return {"inpainting": "ddpm.LatentInpaintDiffusion", "image_edit": "ddpm_edit.LatentDiffusion"}.get(
        kind or "", "ddpm.LatentDiffusion"
    )


def _schedule_to_params(diffusion: DiffusionConfig) -> Params:
    schedule = diffusion.schedule
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    if schedule.kind not in names:
        raise inexpressible("diffusion.schedule.kind", schedule.kind, " or ".join(names))
    expect_options("diffusion.schedule", schedule, {"zero_terminal_snr": False})
    expect_options("diffusion", diffusion, {"learned_variance": False, "variance": "small", "clipping": None})
    ends = schedule.model_dump(include={"beta_start", "beta_end"})
    params: Params = {name.replace("beta", "linear"): value for name, value in ends.items()}
    if schedule.kind != "scaled_linear":
        params["beta_schedule"] = names[schedule.kind]
    if diffusion.prediction not in PREDICTIONS:
        raise inexpressible("diffusion.prediction", diffusion.prediction, " or ".join(PREDICTIONS))
    if diffusion.prediction != "eps":
        params["parameterization"] = diffusion.prediction
    return params


def _conditioning_key(contents: Contents) -> str | None:
    attends = contents.text is not None or contents.classes is not None
    if contents.text is not None and contents.spatial is not None and contents.spatial.kind in BESIDE_TEXT:
        return "hybrid"
    if attends and contents.spatial is not None:
        raise inexpressible("spatial", contents.spatial.kind, "null with text or classes")
    return "crossattn" if attends else None if contents.spatial is None else "concat"


def _condition_to_target(contents: Contents) -> Params | str:
    if contents.text is None and contents.spatial is not None and contents.spatial.kind == "inpainting":
        return FIRST_STAGE
    for name in ("text", "classes", "spatial"):
        section = getattr(contents, name)
        if section is not None:
            return condition_to_target(section, name)
    return UNCONDITIONAL
