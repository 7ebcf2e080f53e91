"""Names in saved models and runs from before a rename -> today's names: the only place that knows old names.

In a user's YAML or `--set` an old key is an error that names the new one (`old_option`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options of a configuration, by path.
OPTIONS = {
    "picture": "image",
    "data.small_noise": "data.low_res_noise_std",
    **{
        f"training.{stage}.validation_pictures": f"training.{stage}.validation_images"
        for stage in ("unet", "autoencoder", "classifier")
    },
    "training.autoencoder.statistics_pictures": "training.autoencoder.statistics_images",
    "training.unet.sample_pictures": "training.unet.sample_images",
}
# Values of fields, by the kind of file and the name of the field.
VALUES = {("spatial", "kind"): {"rescaler": "segmentation_map"}}
# Fields and folders of `model_index.json`, classes in it and in `config.json`.
PARTS = {"picture_encoder": "image_encoder"}
CLASSES = {"PictureEncoder": "ImageEncoder"}
# Prefixes of weights in a run's state.
WEIGHTS = {"picture_encoder.": "image_encoder."}
# Facts of a run's steps, of its log and of caches.
FACTS = {"pictures": "images", "division": "sharding", "pictures_per_second": "images_per_second"}


def current_fields(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a file with today's names and values."""
    found = dict(fields)
    if found.get("_class_name") in CLASSES:
        found["_class_name"] = CLASSES[found["_class_name"]]
    for (owner, name), values in VALUES.items():
        if owner == kind and found.get(name) in values:
            found[name] = values[found[name]]
    return found


def current_index(index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return `model_index.json` with today's names, and the folder of each renamed part."""
    folders = {new: old for old, new in PARTS.items() if old in index}
    found = {PARTS.get(name, name): value for name, value in index.items()}
    for name, value in found.items():
        if isinstance(value, list) and len(value) == 2 and value[1] in CLASSES:
            found[name] = [value[0], CLASSES[value[1]]]
    return found, folders


def current_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a saved run with today's names."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    if isinstance(training := found.get("training"), dict):
        found["training"] = {name: dict(v) if isinstance(v, Mapping) else v for name, v in training.items()}
    for old, new in OPTIONS.items():
        *parents, name = old.split(".")
        node: Any = found
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and name in node:
            node[new.split(".")[-1]] = node.pop(name)
    if isinstance(autoencoder := found.get("autoencoder"), dict) and autoencoder.get("kind") != "vq":
        autoencoder.pop("codebook_size", None)  # all kinds had the options of one
    if isinstance(spatial := found.get("spatial"), dict):
        found["spatial"] = current_fields("spatial", spatial)
        if found["spatial"].get("kind") != "segmentation_map":  # all kinds had the options of one
            for name in ("stages", "names"):
                found["spatial"].pop(name, None)
    return found


def current_weights(state: Any) -> Any:
    """Return a tree of weights by name with today's prefixes."""
    if not isinstance(state, dict):
        return state
    found = {}
    for name, value in state.items():
        new = name
        for old, prefix in WEIGHTS.items():
            new = prefix + new.removeprefix(old) if isinstance(new, str) and new.startswith(old) else new
        found[new] = current_weights(value)
    return found


def current_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a run's step, of a report in its log or of a cache with today's names."""
    return {FACTS.get(name, name): value for name, value in facts.items()}


def first_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a cache with their first names, of which the names of caches in runs are digests."""
    first = {"images": "pictures"}
    return {first.get(name, name): value for name, value in facts.items()}


def old_value(owner: str, name: str, section: Any) -> str | None:
    """Return today's name of a renamed value of the field `name` in a section; None for other values."""
    value = section.get(name) if isinstance(section, Mapping) else None
    return VALUES.get((owner, name), {}).get(str(value))


def old_option(path: str) -> str | None:
    """Return today's name of an option that was renamed, given its path; None for other paths."""
    return OPTIONS.get(path)
