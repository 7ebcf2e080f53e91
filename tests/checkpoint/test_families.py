"""Files and folders of other families raise one line that names the family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.compvis import read_single_file
from ldm.checkpoint.compvis.folders import read_folder
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.errors import UserError

FILES = {  # names of tensors in released files
    "Flux": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
    "Chroma": ["double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "PixArt": ["blocks.0.scale_shift_table", "t_block.1.weight", "y_embedder.y_embedding"],
    "Wan": ["blocks.0.self_attn.norm_q.weight", "time_projection.1.weight", "text_embedding.0.weight"],
    "Stable Cascade": ["clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.weight"],
    "AudioLDM": ["cond_stage_model.model.audio_branch.bn0.weight", "model.diffusion_model.out.0.weight"],
    "HunyuanDiT": ["blocks.0.default_modulation.1.weight", "mlp_t5.0.weight"],
    "Lumina": ["noise_refiner.0.attention.qkv.weight", "cap_embedder.1.weight"],
    "AuraFlow": ["double_layers.0.attn.w1q.weight"],
    "Stable Video Diffusion": ["model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"],
    "LTX-Video": ["model.diffusion_model.transformer_blocks.0.attn1.k_norm.weight", "adaln_single.linear.weight"],
    "LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "LoRA ": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "LoRA  ": ["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"],
    "LoRA   ": ["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"],
    "ControlNet": ["control_model.input_hint_block.0.weight", "control_model.zero_convs.0.0.weight"],
    "ControlNet ": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "T2I-adapter": ["body.0.block1.weight", "conv_in.weight"],
    "T2I-adapter ": ["adapter.body.0.resnets.0.block1.weight"],
    "IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "textual inversion": ["emb_params"],
    "CLIP text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "autoencoder": ["encoder.conv_in.weight", "decoder.conv_in.weight"],
    "autoencoder with the names of diffusers": ["encoder.down_blocks.0.resnets.0.conv1.weight"],
    "U-Net with the names of diffusers": ["down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"],
    "ESRGAN": ["model.1.sub.0.RDB1.conv1.0.weight"],
}


@pytest.mark.parametrize("family", FILES)
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("config", [None, "published/sd1"])
def test_a_file_of_another_family_is_named(family: str, pickled: bool, config: str | None, tmp_path: Path) -> None:
    weights = {name: torch.ones(1) for name in FILES[family]}
    if config is not None and family == "autoencoder":
        pytest.skip("the configuration has such names")
    path = tmp_path / ("model.pt" if pickled else "model.safetensors")
    if pickled:
        torch.save(weights, path)
    else:
        save_file(weights, path)
    with pytest.raises(UserError, match=family.strip()) as caught:
        read_single_file(path, config)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_quantized_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "flux-q4.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(UserError, match="is a GGUF file"):
        read_single_file(tmp_path / "flux-q4.gguf")
    with pytest.raises(UserError, match="is a GGUF file"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("FluxPipeline", "Flux"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("PixArtSigmaPipeline", "PixArt"),
        ("WanPipeline", "Wan"),
        ("StableCascadeDecoderPipeline", "Stable Cascade"),
        ("AudioLDM2Pipeline", "AudioLDM"),
        ("StableDiffusionControlNetPipeline", "ControlNet"),
        ("StableDiffusionAdapterPipeline", "T2I-adapter"),
        ("KandinskyV22Pipeline", "Kandinsky"),
        ("IFPipeline", "DeepFloyd IF"),
        ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
        ("StableUnCLIPPipeline", "Stable unCLIP"),
    ],
)
def test_a_pipeline_of_another_family_is_named(name: str, family: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=rf"a {name}, which belongs to the family {family}.*: ldm loads Stable"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"_class_name": "ControlNetModel"}, "a ControlNetModel alone, .* the family ControlNet"),
        ("config.json", {"_class_name": "T2IAdapter"}, "a T2IAdapter alone, .* the family T2I-adapter"),
        ("config.json", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel alone, .* family Flux"),
        ("config.json", {"architectures": ["CLIPTextModel"]}, "a CLIPTextModel alone, .* the family text encoder"),
        ("config.json", {"_class_name": "Unheard"}, "holds a Unheard alone: give the folder of a pipeline"),
        ("adapter_config.json", {"peft_type": "LORA"}, "holds a LoRA"),
        ("pytorch_lora_weights.safetensors", {}, "holds a LoRA"),
    ],
)
def test_a_folder_without_a_pipeline_is_named(
    file: str, fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps(fields))
    for read in (load_pipeline, read_folder):
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
