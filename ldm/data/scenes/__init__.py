"""The built-in data set: scenes of emoji, rendered from records, so that every caption is true."""

from ldm.data.scenes.compose import make_scene
from ldm.data.scenes.dataset import ScenesConfig, ScenesDataset
from ldm.data.scenes.drawing import render, render_mask
from ldm.data.scenes.scene import Background, Scene, Thing
from ldm.data.scenes.vocabulary import Concept, concepts, is_held_out
from ldm.data.scenes.writers import write_folder, write_webdataset

__all__ = [
    "Background",
    "Concept",
    "Scene",
    "ScenesConfig",
    "ScenesDataset",
    "Thing",
    "concepts",
    "is_held_out",
    "make_scene",
    "render",
    "render_mask",
    "write_folder",
    "write_webdataset",
]
