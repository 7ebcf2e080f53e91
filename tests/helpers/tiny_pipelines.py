"""Published kinds of pipelines, tiny and with random weights."""

from __future__ import annotations

from dataclasses import replace

import tokenizers
import torch
from tokenizers import processors
from torch import nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.conditioning.classes import ClassEmbedder, ClassesConfig
from ldm.conditioning.image.encoders import CLIPImageConfig, ImageSection, OwnImageConfig, make_image_encoder
from ldm.conditioning.spatial import SpatialConfig, make_spatial
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.t5 import T5Config
from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, Tokenizer, byte_pairs
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.identity import identity_config
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet
from ldm.registry import BOTTLENECKS

CAPTIONS = ["a red dog playing a trumpet", "two blue cats"]
ZERO_SNR_V = DiffusionConfig(
    schedule=schedule_config(zero_terminal_snr=True, spacing="trailing", set_alpha_to_one=True), prediction="v"
)
V = DiffusionConfig(prediction="v")


def clip_tokenizer(pad_token: str) -> Tokenizer:
    """Return a tokenizer of letters and two merges, with CLIP's begin and end tokens last."""
    letters = list("!abcdefghijklmnopqrstuvwxyz")
    merges = [("d", "o"), ("do", "g</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), *CLIP_BRACKETS]
    return Tokenizer(byte_pairs({word: number for number, word in enumerate(words)}, merges), 16, pad_token)


def bert_tokenizer(max_length: int) -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3, vocab_size=90, max_length=max_length)


def speaking(*networks: nn.Module) -> None:
    """Randomize weights that are initialized near zero, so that outputs depend on every input."""
    for weight in (weight for network in networks for weight in network.parameters()):
        if weight.ndim > 1:
            nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5)


def autoencoder_config(kind: str = "kl", **options: object) -> AutoencoderConfig:
    tiny = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32, "scaling_factor": 0.7}
    return BOTTLENECKS[kind].section(**{"block_out_channels": (8, 16)} | tiny | options)


def unet_config(**options: object) -> UNetConfig:
    tiny = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16, "num_attention_heads": 2}
    levels = {"block_out_channels": (16, 32, 32), "attention_layers": (1, 1, 0), "cross_attention_dim": 32}
    return UNetConfig(**levels | tiny | options)


def clip_config(tokenizer: Tokenizer, **options: object) -> CLIPConfig:
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_length": tokenizer.max_length}
    words = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.pieces.index(CLIP_BRACKETS[1])}
    return CLIPConfig(**tiny | words | options)


def text_parts(
    autoencoder: AutoencoderConfig, unet: UNetConfig, text: object, tokenizer: Tokenizer, **more: object
) -> Parts:
    diffusion = more.pop("diffusion", DiffusionConfig())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Autoencoder(autoencoder), UNet(unet), make_text_encoder(text)
        speaking(*networks)
    return Parts(*networks, tokenizer, diffusion, **more)


def sd_1() -> Parts:
    tokenizer = clip_tokenizer(CLIP_BRACKETS[1])
    return text_parts(autoencoder_config(), unet_config(use_linear_projection=False), clip_config(tokenizer), tokenizer)


def sd_2(diffusion: DiffusionConfig = V) -> Parts:
    tokenizer = clip_tokenizer("!")
    text = clip_config(tokenizer, num_hidden_layers=3, hidden_act="gelu", layer="penultimate")
    unet = unet_config(num_attention_heads=(2, 4, 4))
    return text_parts(autoencoder_config(), unet, text, tokenizer, diffusion=diffusion)


def sdxl() -> Parts:
    first, second = clip_tokenizer(CLIP_BRACKETS[1]), clip_tokenizer("!")
    inside = {"layer": "penultimate", "final_norm": False}
    wide = clip_config(second, **inside, hidden_size=48, num_attention_heads=4, hidden_act="gelu", projection_dim=40)
    unet = unet_config(
        attention_layers=(0, 1, 2),
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=40 + 6 * 16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text_encoder_2 = make_text_encoder(wide)
        speaking(text_encoder_2)
    return text_parts(
        autoencoder_config(),
        unet,
        clip_config(first, **inside),
        first,
        text_encoder_2=text_encoder_2,
        tokenizer_2=second,
        zeros_for_empty_prompt=True,
    )


def ldm_text(kind: str = "kl") -> Parts:
    """Return a model like the one of 1.45 billion parameters, with factor 8 as LDMTextToImagePipeline requires."""
    tokenizer = bert_tokenizer(77)
    text = LDMBertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_width=8
    )
    quantised = {"kind": "vq", "codebook_size": 32} if kind == "vq" else {}
    autoencoder = autoencoder_config(block_out_channels=(8, 8, 8, 16), sample_size=64, **quantised)
    return text_parts(autoencoder, unet_config(sample_size=8, use_linear_projection=False), text, tokenizer)


def bert() -> Parts:
    tokenizer = bert_tokenizer(12)
    text = BertConfig(
        vocab_size=tokenizer.vocab_size, max_length=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return text_parts(autoencoder_config(), unet_config(), text, tokenizer, diffusion=ZERO_SNR_V)


def bert_vq() -> Parts:
    """Return a model with an attention mask, which no pipeline of diffusers supports."""
    parts = bert()
    parts.autoencoder = vq()
    return parts


def ldm_words_vq() -> Parts:
    """Return a BERT without attention mask, of the length that LDMTextToImagePipeline pads to."""
    parts, tokenizer = ldm_text("vq"), bert_tokenizer(77)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_length": 77}
    config = BertConfig(vocab_size=tokenizer.vocab_size, use_attention_mask=False, **text)
    return replace(parts, text_encoder=make_text_encoder(config), tokenizer=tokenizer)


def t5() -> Parts:
    pieces = tokenizers.SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    pieces.train_from_iterator(CAPTIONS * 3, 80, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram = tokenizers.Tokenizer.from_str(pieces.to_str())
    unigram.add_special_tokens([*special, *(f"<extra_id_{number}>" for number in range(99, -1, -1))])
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = Tokenizer(unigram, 16, "<pad>")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_width": 8}
    text = T5Config(vocab_size=tokenizer.vocab_size, max_length=16, intermediate_size=48, **sizes)
    return text_parts(autoencoder_config(), unet_config(), text, tokenizer)


def vq() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        autoencoder = Autoencoder(autoencoder_config(kind="vq", codebook_size=32, scaling_factor=1.0))
        speaking(autoencoder)
    return autoencoder


def unconditional(kind: str = "vq", **options: object) -> Parts:
    plain = {"attention": "plain", "cross_attention_dim": None, "num_attention_heads": (2, 4, 4)}
    config = unet_config(**plain | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, autoencoder = UNet(config), Autoencoder(autoencoder_config())
        speaking(unet, autoencoder)
    return Parts(vq() if kind == "vq" else autoencoder, unet, None, None, DiffusionConfig())


def pixels(**options: object) -> Parts:
    """Return a pixel-space model of 16x16 images."""
    channels = {"in_channels": 3, "out_channels": 3} | options
    identity = Autoencoder(identity_config(channels=3, sample_size=16))
    return replace(unconditional("kl", **channels), autoencoder=identity)


def of_classes() -> Parts:
    """Return a model conditioned on a class token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, classes = UNet(unet_config()), ClassEmbedder(ClassesConfig(num_classes=5, hidden_size=32))
        speaking(unet)
    return Parts(vq(), unet, None, None, DiffusionConfig(), classes=classes)


def _varying(image: ImageSection, **unet: object) -> Parts:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Autoencoder(autoencoder_config()), UNet(unet_config(**unet))
        encoder = make_image_encoder(image)
        speaking(*networks, encoder)
    return Parts(*networks, None, None, DiffusionConfig(), image_encoder=encoder)


def variations() -> Parts:
    """Return an image-variation model with a CLIP."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
    return _varying(CLIPImageConfig(image_size=32, patch_size=8, **sizes), use_linear_projection=False)


def own_variations() -> Parts:
    """Return an image-variation model with an encoder trained from scratch."""
    return _varying(OwnImageConfig(channels=(8, 16), bottleneck=6, tokens=3, hidden_size=32))


def with_spatial(parts: Parts, **options: object) -> Parts:
    """Return a model with spatial conditioning whose output depends on every input channel."""
    config = SpatialConfig(**options)
    channels = parts.autoencoder.config.latent_channels + config.channels
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = UNet(parts.unet.config.model_copy(update={"in_channels": channels}))
        spatial = make_spatial(config)
        speaking(unet)
    return replace(parts, unet=unet, spatial=spatial)


def layout() -> Parts:
    """Return a model of text and a segmentation map of five classes."""
    names = ("background", "dog", "cat", "trumpet", "hat")
    return with_spatial(bert(), kind="segmentation_map", in_channels=5, channels=4, stages=1, names=names)


def inpainting() -> Parts:
    """Return an inpainting model like Stable Diffusion's, with a posterior without variance."""
    parts = with_spatial(sd_1(), kind="inpainting", in_channels=1, channels=5)
    last = parts.autoencoder.quant_conv
    with torch.no_grad():
        last.weight[4:], last.bias[4:] = 0, -30
    return parts


def super_resolution() -> Parts:
    """Return a super-resolution model like LDM's, with three unscaled latent channels."""
    config = autoencoder_config(kind="vq", codebook_size=32, scaling_factor=1.0, latent_channels=3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        autoencoder = Autoencoder(config)
        speaking(autoencoder)
    parts = replace(unconditional(out_channels=3), autoencoder=autoencoder)
    return with_spatial(parts, kind="low_resolution", in_channels=3, channels=3)
