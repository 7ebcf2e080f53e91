"""Parameters of an image in its PNG metadata: JSON under `ldm`, and AUTOMATIC1111's text under `parameters`."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

    from ldm.generation.request import Request

OURS, TEXT = "ldm", "parameters"  # keys of the PNG's text
# Names of samplers in AUTOMATIC1111's webui.
SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "plms": "PLMS",
    "lms": "LMS",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
# Names of parameters there, in its order.
NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "strength": "Denoising strength",
}


def png_text(prompt: str, facts: dict[str, Any]) -> PngInfo:
    """Return the text of a PNG for a prompt and further parameters by name."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("prompt", prompt)
    text.add_text("negative_prompt", str(facts.get("negative_prompt", "")))
    text.add_text(OURS, json.dumps({"prompt": prompt} | facts))
    text.add_text(TEXT, webui_text(prompt, facts))
    return text


def webui_text(prompt: str, facts: dict[str, Any]) -> str:
    """Return parameters as AUTOMATIC1111's webui writes them; values with a comma or a colon are in quotes."""
    shown = facts | {"sampler": SAMPLERS.get(str(facts.get("sampler")), facts.get("sampler"))}
    found = {name: str(shown[ours]) for ours, name in NAMES.items() if shown.get(ours) is not None}
    quoted = {name: json.dumps(value) if re.search(r"[,:\n]", value) else value for name, value in found.items()}
    lines = [prompt, *([f"Negative prompt: {facts['negative_prompt']}"] if facts.get("negative_prompt") else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in quoted.items())])


def read_parameters(path: Path) -> dict[str, Any]:
    """Read the parameters in a PNG's metadata, of ldm or of AUTOMATIC1111's webui.

    Raises:
        UserError: if it has none.
    """
    from ldm.data.images import decode_as_is

    info = decode_as_is(path, str(path)).info
    text = info.get(OURS, info.get(TEXT))
    if not isinstance(text, str):
        raise UserError(f"{path} has no parameters in its metadata: it is no PNG of ldm or of AUTOMATIC1111's webui")
    try:
        facts = json.loads(text)
    except ValueError:
        return parse_webui(text)
    if not isinstance(facts, dict):
        return parse_webui(text)
    return {"prompt": str(info.get("prompt", ""))} | facts  # files of earlier versions have the prompt beside the JSON


def parse_webui(text: str) -> dict[str, Any]:
    """Return the parameters of AUTOMATIC1111's text by our names; others keep their names."""
    *head, last = text.strip().split("\n")
    if not re.match(r"\w[\w +/]*: ", last) or last.startswith("Negative prompt: "):
        head, last = [*head, last], ""
    prompt, _, negative = "\n".join(head).partition("Negative prompt: ")
    pairs = re.findall(r'\s*(\w[\w +/]*?): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', last)
    theirs = {name: json.loads(value) if value.startswith('"') else value.strip() for name, value in pairs}
    ours = {name: ours for ours, name in NAMES.items()}
    facts: dict[str, Any] = {ours.get(name, name): _number(value) for name, value in theirs.items()}
    samplers = {name: ours for ours, name in SAMPLERS.items()}
    if "sampler" in facts:
        facts["sampler"] = samplers.get(facts["sampler"], facts["sampler"])
    found = {"prompt": prompt.strip()} | ({"negative_prompt": negative.strip()} if negative.strip() else {})
    return found | facts


def _number(value: str) -> int | float | str:
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value) else value


def request_from_png(path: Path) -> Request:
    """Return the request that generates an image again, from its metadata; input images are read from their files.

    Raises:
        UserError: if there are no parameters, or values that are not valid here.
    """
    from ldm.conditioning.text.composition import Composed
    from ldm.generation.option import parse_dtype, parse_size
    from ldm.generation.request import Request

    facts = read_parameters(path)
    given: dict[str, Any] = {}
    for each in fields(Request):
        option = each.metadata["option"]
        value = facts.get(option.record or each.name)
        if value is None or each.name in ("prompts", "classes", "classifier", "clip", "size_conditioning"):
            continue
        if each.name in ("image", "mask", "layout"):
            value = option.parse(Path(value))
        given[each.name] = tuple(value) if isinstance(value, list) else value
    if isinstance(given.get("dtype"), str):
        given["dtype"] = parse_dtype(given["dtype"])
    if isinstance(given.get("size"), str):
        given["size"] = parse_size(given["size"])
    if "timesteps" in given:
        given.pop("num_inference_steps", None)
    if "class" in facts:
        given["classes"] = (facts["class"],)
    elif facts.get("prompt"):
        given["prompts"] = tuple(map(Composed.parse, facts["prompt"].split("\n")))
    return Request(**given)
