"""Published kinds of pipelines, tiny and with random weights."""

from __future__ import annotations

from dataclasses import replace

import tokenizers
import torch
from tokenizers import processors
from torch import nn

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.classes import ClassEmbedder, ClassesConfig, ClassTable, ClassTokens
from ldm.conditioning.image.conditioning import ImageEmbedding
from ldm.conditioning.image.encoders import CLIPImageConfig, ImageSection, OwnImageConfig, make_image_encoder
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.t5 import T5Config
from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, Tokenizer, byte_pairs
from ldm.conditioning.unconditional import Unconditional
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.identity import identity_config
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet
from ldm.registry import BOTTLENECKS, SPATIAL

CAPTIONS = ["a red dog playing a trumpet", "two blue cats"]
ZERO_SNR_V = DiffusionConfig(
    schedule=schedule_config(zero_terminal_snr=True, spacing="trailing", set_alpha_to_one=True), prediction="v"
)
V = DiffusionConfig(prediction="v")


def clip_tokenizer(pad_token: str) -> Tokenizer:
    """A vocabulary of the letters and two merges, with CLIP's bracketing tokens at the end."""
    letters = list("!abcdefghijklmnopqrstuvwxyz")
    merges = [("d", "o"), ("do", "g</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), *CLIP_BRACKETS]
    return Tokenizer(byte_pairs({word: number for number, word in enumerate(words)}, merges), 16, pad_token)


def bert_tokenizer(max_length: int) -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3, vocab_size=90, max_length=max_length)


def speaking(*networks: nn.Module) -> None:
    """Weights at random in all that begins at zero or nearly so, so that every input has a say."""
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


def text_pipeline(
    autoencoder: AutoencoderConfig, unet: UNetConfig, text: object, tokenizer: Tokenizer, **more: object
) -> Pipeline:
    diffusion = more.pop("diffusion", DiffusionConfig())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Autoencoder(autoencoder), UNet(unet), make_text_encoder(text)
        speaking(*networks)
    encoders = [(networks[2], tokenizer), *more.pop("encoders", ())]
    return Pipeline(*networks[:2], diffusion, {"text": TextConditioning(encoders, **more)})


def sd_1() -> Pipeline:
    tokenizer = clip_tokenizer(CLIP_BRACKETS[1])
    return text_pipeline(
        autoencoder_config(), unet_config(use_linear_projection=False), clip_config(tokenizer), tokenizer
    )


def sd_2(diffusion: DiffusionConfig = V) -> Pipeline:
    tokenizer = clip_tokenizer("!")
    text = clip_config(tokenizer, num_hidden_layers=3, hidden_act="gelu", layer="penultimate")
    unet = unet_config(num_attention_heads=(2, 4, 4))
    return text_pipeline(autoencoder_config(), unet, text, tokenizer, diffusion=diffusion)


def sdxl() -> Pipeline:
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
    return text_pipeline(
        autoencoder_config(),
        unet,
        clip_config(first, **inside),
        first,
        encoders=[(text_encoder_2, second)],
        zeros_for_empty_prompt=True,
    )


def ldm_text(kind: str = "kl") -> Pipeline:
    """The 1.45-billion-parameter model's kind, at the factor of 8 that LDMTextToImagePipeline knows alone."""
    tokenizer = bert_tokenizer(77)
    text = LDMBertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_width=8
    )
    quantised = {"kind": "vq", "codebook_size": 32} if kind == "vq" else {}
    autoencoder = autoencoder_config(block_out_channels=(8, 8, 8, 16), sample_size=64, **quantised)
    return text_pipeline(autoencoder, unet_config(sample_size=8, use_linear_projection=False), text, tokenizer)


def bert() -> Pipeline:
    tokenizer = bert_tokenizer(12)
    text = BertConfig(
        vocab_size=tokenizer.vocab_size, max_length=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return text_pipeline(autoencoder_config(), unet_config(), text, tokenizer, diffusion=ZERO_SNR_V)


def bert_vq() -> Pipeline:
    """What no pipeline of diffusers expresses: it would not hide the padding."""
    return replace(bert(), autoencoder=vq())


def ldm_words_vq() -> Pipeline:
    """A BERT that looks at padding, of the length that LDMTextToImagePipeline pads to."""
    pipeline, tokenizer = ldm_text("vq"), bert_tokenizer(77)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_length": 77}
    config = BertConfig(vocab_size=tokenizer.vocab_size, use_attention_mask=False, **text)
    return replace(pipeline, conditionings={"text": TextConditioning([(make_text_encoder(config), tokenizer)])})


def t5() -> Pipeline:
    pieces = tokenizers.SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    pieces.train_from_iterator(CAPTIONS * 3, 80, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram = tokenizers.Tokenizer.from_str(pieces.to_str())
    unigram.add_special_tokens([*special, *(f"<extra_id_{number}>" for number in range(99, -1, -1))])
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = Tokenizer(unigram, 16, "<pad>")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_width": 8}
    text = T5Config(vocab_size=tokenizer.vocab_size, max_length=16, intermediate_size=48, **sizes)
    return text_pipeline(autoencoder_config(), unet_config(), text, tokenizer)


def vq() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        autoencoder = Autoencoder(autoencoder_config(kind="vq", codebook_size=32, scaling_factor=1.0))
        speaking(autoencoder)
    return autoencoder


def unconditional(kind: str = "vq", **options: object) -> Pipeline:
    plain = {"attention": "plain", "cross_attention_dim": None, "num_attention_heads": (2, 4, 4)}
    config = unet_config(**plain | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, autoencoder = UNet(config), Autoencoder(autoencoder_config())
        speaking(unet, autoencoder)
    chosen = vq() if kind == "vq" else autoencoder
    facts = {"unconditional": Unconditional()} if config.num_class_embeds is None else {"class_table": ClassTable()}
    return Pipeline(chosen, unet, DiffusionConfig(), facts)


def pixels(**options: object) -> Pipeline:
    """Without an autoencoder: the U-Net draws images of 16x16 themselves."""
    channels = {"in_channels": 3, "out_channels": 3} | options
    identity = Autoencoder(identity_config(channels=3, sample_size=16))
    return replace(unconditional("kl", **channels), autoencoder=identity)


def of_classes() -> Pipeline:
    """Classes by a token that the U-Net attends to."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, classes = UNet(unet_config()), ClassEmbedder(ClassesConfig(num_classes=5, hidden_size=32))
        speaking(unet)
    return Pipeline(vq(), unet, DiffusionConfig(), {"classes": ClassTokens(classes)})


def _varying(image: ImageSection, **unet: object) -> Pipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Autoencoder(autoencoder_config()), UNet(unet_config(**unet))
        encoder = make_image_encoder(image)
        speaking(*networks, encoder)
    return Pipeline(*networks, DiffusionConfig(), {"image": ImageEmbedding(encoder)})


def variations() -> Pipeline:
    """Of an image that a CLIP sees, as Stable Diffusion's image variations are."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
    return _varying(CLIPImageConfig(image_size=32, patch_size=8, **sizes), use_linear_projection=False)


def own_variations() -> Pipeline:
    """Of an image that an encoder of our own sees."""
    return _varying(OwnImageConfig(channels=(8, 16), bottleneck=6, tokens=3, hidden_size=32))


def with_spatial(pipeline: Pipeline, **options: object) -> Pipeline:
    """The pipeline with a U-Net that sees an image beside the latents, to which all of its input speaks."""
    kind = SPATIAL[options["kind"]]
    config = kind.section(**options)
    channels = pipeline.autoencoder.config.latent_channels + config.channels
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = UNet(pipeline.denoiser.config.model_copy(update={"in_channels": channels}))
        spatial = kind(kind.network(config))
        speaking(unet)
    kept = {name: each for name, each in pipeline.conditionings.items() if name != "unconditional"}
    return replace(pipeline, denoiser=unet, conditionings=kept | {spatial.name: spatial})


def layout() -> Pipeline:
    """Text and a map of five classes."""
    names = ("background", "dog", "cat", "trumpet", "hat")
    return with_spatial(bert(), kind="segmentation_map", in_channels=5, channels=4, stages=1, names=names)


def inpainting() -> Pipeline:
    """Stable Diffusion's; the posterior of its autoencoder has no width, so that its mode is what others draw."""
    pipeline = with_spatial(sd_1(), kind="inpainting", in_channels=1, channels=5)
    last = pipeline.autoencoder.quant_conv
    with torch.no_grad():
        last.weight[4:], last.bias[4:] = 0, -30
    return pipeline


def super_resolution() -> Pipeline:
    """LDM's: three channels of latents, unscaled, beside as many of a small image."""
    config = autoencoder_config(kind="vq", codebook_size=32, scaling_factor=1.0, latent_channels=3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        autoencoder = Autoencoder(config)
        speaking(autoencoder)
    pipeline = replace(unconditional(out_channels=3), autoencoder=autoencoder)
    return with_spatial(pipeline, kind="low_resolution", in_channels=3, channels=3)
