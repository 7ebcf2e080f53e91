"""Tiny random classifiers, and CLIPs in the formats of transformers and open_clip."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_pipelines import speaking

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.checkpoint.pipeline import Pipeline
from ldm.config.classifier import ClassifierConfig
from ldm.models.classifier import Classifier

CLASSES = 5


def classifier_config(**options: object) -> ClassifierConfig:
    tiny = {"block_out_channels": (16, 32), "attention_levels": (1,), "num_attention_heads": 2, "norm_num_groups": 4}
    return ClassifierConfig(**{"num_classes": CLASSES, "layers_per_block": 1} | tiny | options)


def trained_classifier(pipeline: Pipeline) -> TrainedClassifier:
    """Return a classifier with random weights for the latents and noise schedule of a pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Classifier(classifier_config()).eval()
        speaking(network)
    return TrainedClassifier(network, pipeline.autoencoder, pipeline.diffusion)


def transformers_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["<|startoftext|>", "<|endoftext|>", *(letter for letter in "abcdefghijklmnopqrstuvwxyz")]
    words += [letter + "</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    text = sizes | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 16}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 4}, projection_dim=12)
        ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def open_clip_clip(folder: Path) -> Path:
    from open_clip import CLIP

    sizes = {"width": 32, "layers": 1, "heads": 2}
    vision = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 1, "head_width": 16}
    model = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": sizes | {"context_length": 16, "vocab_size": 49408}}
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = CLIP(**model)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return folder


CLIPS = {"transformers": transformers_clip, "open_clip": open_clip_clip}
