"""Families of models that ldm does not support, recognised so that an error can name them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ldm.errors import UserError
from ldm.storage.fields import load_fields

# Family -> patterns of tensor names; all patterns of an entry must match some name. The first entry counts.
FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a ControlNet-LoRA", (r"lora_controlnet",)),
    ("a LoRA", (r"(\.lora_(up|down|A|B|mid)\b|\.lora\.(up|down)\.|\.hada_w1|\.lokr_w|\.oft_|_lora\.(up|down)\.)",)),
    ("a ControlNet", (r"(control_model\.|controlnet_|input_hint_block\.|control_net\.|(^|\.)zero_convs\.)",)),
    ("an IP-Adapter", (r"^(image_proj\.|ip_adapter\.)",)),
    ("a T2I-adapter", (r"^(adapter\.)?body\.\d+\.(block1|resnets\.\d+\.block1|in_conv)\.",)),
    ("a motion module of AnimateDiff", (r"(motion_modules|temporal_transformer)\.",)),
    ("an embedding of textual inversion", (r"^(emb_params|string_to_param|string_to_param\..*|clip_[lg])$",)),
    ("a Stable Video Diffusion model", (r"\.time_stack\.",)),
    ("a Stable Diffusion x4 upscaler", (r"^low_scale_model\.",)),
    ("a Stable unCLIP model", (r"^(noise_augmentor|embedder\.model\.visual)\b",)),
    ("a depth-to-image model", (r"^depth_model\.",)),
    ("an AudioLDM model", (r"(audio_branch|text_branch|clap|mel_basis)",)),
    ("a Stable Audio model", (r"^(model\.model\.transformer|pretransform)\.",)),
    ("a Chroma model", (r"distilled_guidance_layer\.",)),
    ("a HunyuanVideo model", (r"(individual_token_refiner|double_blocks\.\d+\.img_attn_qkv)",)),
    ("a Flux model", (r"(double_blocks\.\d+\.img_attn|single_transformer_blocks\.)",)),
    ("a Qwen-Image model", (r"(^|\.)txt_norm\.", r"add_q_proj")),
    ("a Stable Diffusion 3 model", (r"(joint_blocks\.\d+\.|transformer_blocks\.\d+\.attn\.add_q_proj)",)),
    ("an AuraFlow model", (r"(double_layers\.\d+|joint_transformer_blocks\.\d+)\.",)),
    ("a HunyuanDiT model", (r"(mlp_t5\.|default_modulation\.|text_embedding_padding)",)),
    ("a Lumina model", (r"(noise_refiner|context_refiner|cap_embedder)\.",)),
    ("a Mochi model", (r"t5_yproj\.",)),
    ("a CogVideoX model", (r"patch_embed\.text_proj\.",)),
    ("an LTX-Video model", (r"(patchify_proj\.|transformer_blocks\.\d+\.attn\d\.k_norm\.)",)),
    ("a Sana model", (r"(attention_y_norm|mlp\.inverted_conv|ff\.conv_inverted)\b",)),
    ("a PixArt model", (r"(y_embedder\.y_embedding|adaln_single\.|(^|\.)t_block\.1\.)",)),
    ("a Wan model", (r"(time_projection\.1\.|condition_embedder\.time_proj|blocks\.\d+\.self_attn\.norm_q)",)),
    ("a Stable Cascade model", (r"(clip_txt_mapper|clip_txt_pooled_mapper|clip_mapper|effnet_mapper)\.",)),
    ("a DiT model", (r"(^|\.)blocks\.\d+\.adaLN_modulation\.",)),
    ("a T5 text encoder", (r"block\.0\.layer\.0\.SelfAttention\.",)),
    ("a CLIP image encoder", (r"^vision_model\.",)),
    ("a CLIP text encoder", (r"^(text_model|transformer\.text_model|transformer\.resblocks)\.",)),
    ("a language model", (r"^model\.layers\.\d+\.self_attn\.",)),
    ("a U-Net with the names of diffusers", (r"^down_blocks\.\d+\.resnets\.", r"^mid_block\.")),
    ("an autoencoder with the names of diffusers", (r"^(encoder|decoder)\.(down|up)_blocks\.",)),
    ("an upscaler of images (ESRGAN)", (r"(\.RDB1\.|\.rdb1\.)",)),
    ("an autoencoder of videos", (r"^(encoder|decoder)\.(middle|upsamples|downsamples)\.",)),
    ("a tiny autoencoder (TAESD)", (r"^(taesd_|decoder\.layers\.\d+\.|encoder\.layers\.\d+\.)",)),
    ("an autoencoder", (r"^(vae\.)?(encoder|decoder)\.conv_in\.weight$",)),
)
ALONE = ("text encoder", "image encoder", "LoRA", "ControlNet", "Adapter", "adapter", "embedding", "motion module")

# Family -> pattern of `_class_name` in model_index.json and config.json.
CLASSES: dict[str, str] = {
    "Flux": r"Flux|Chroma",
    "Stable Diffusion 3": r"StableDiffusion3|SD3",
    "PixArt": r"PixArt",
    "Wan": r"^Wan",
    "Stable Cascade (Wuerstchen)": r"StableCascade|Wuerstchen|StableUnet",
    "AudioLDM": r"AudioLDM|MusicLDM",
    "Stable Audio": r"StableAudio",
    "Stable Video Diffusion": r"StableVideoDiffusion|SpatioTemporal",
    "ControlNet": r"Control[Nn]et|ControlModel",
    "T2I-adapter": r"T2IAdapter|MultiAdapter|StableDiffusion(XL)?Adapter",
    "AnimateDiff": r"AnimateDiff|MotionAdapter|MotionModel",
    "Kandinsky": r"Kandinsky",
    "DeepFloyd IF": r"^IF",
    "HunyuanDiT or HunyuanVideo": r"Hunyuan",
    "Sana": r"^Sana",
    "AuraFlow": r"AuraFlow",
    "Lumina": r"Lumina",
    "Qwen-Image": r"QwenImage",
    "CogView or CogVideoX": r"^Cog",
    "LTX-Video": r"^LTX",
    "Mochi": r"^Mochi",
    "DiT": r"^DiT",
    "Kolors": r"^Kolors",
    "Stable unCLIP": r"UnCLIP|unCLIP",
    "Stable Diffusion x4 upscaler": r"Upscale",
    "depth-to-image": r"Depth2Img",
    "VQ-Diffusion": r"VQDiffusion",
    "score-based models": r"ScoreSde|KarrasVe",
    "consistency models": r"^ConsistencyModel",
    "text encoder": r"TextModel|T5EncoderModel",
}


def file_family(names: Iterable[str]) -> str | None:
    """Return the family of a file with these names of tensors, with its article; None if it is unknown."""
    text = "\n".join(name.removeprefix("model.diffusion_model.") for name in names)
    for family, patterns in FILES:
        if all(re.search(pattern, text, re.MULTILINE) for pattern in patterns):
            return family
    return None


def unsupported_file(path: str | Path, names: Iterable[str]) -> UserError | None:
    """Return the error that names the family of a file; None if it is unknown."""
    family = file_family(names)
    if family is None:
        return None
    if any(word in family for word in ALONE):
        return UserError(f"{path} is {family}, not a whole model: ldm convert reads the single file of a model")
    if family.startswith("an autoencoder") or "names of diffusers" in family:
        return UserError(f"{path} is {family} alone: give its configuration with --config, or load its folder")
    return UserError(f"{path} is {family}: ldm does not support this family")


def class_family(name: object) -> str | None:
    """Return the family of a class of diffusers or transformers that ldm does not load; None if it is unknown."""
    return next((family for family, pattern in CLASSES.items() if re.search(pattern, str(name))), None)


def unsupported_folder(folder: Path) -> UserError | None:
    """Return the error that names the family of a folder without a pipeline; None if it is unknown."""
    if (folder / "adapter_config.json").is_file() or list(folder.glob("*lora_weights*")):
        return UserError(f"{folder} holds a LoRA, not a whole model: give the folder of a model")
    if files := sorted(folder.glob("*.gguf")):
        return UserError(f"{files[0]} is a GGUF file, whose quantized weights ldm does not read: get .safetensors")
    path = folder / "config.json"
    if not path.is_file():
        return None
    fields = load_fields(path)
    name = fields.get("_class_name") or next(iter(fields.get("architectures") or ()), None)
    if name is None:
        return None
    family = class_family(name)
    of = f", which belongs to the family {family}" if family else ""
    return UserError(f"{folder} holds a {name} alone{of}: give the folder of a pipeline, with model_index.json")
