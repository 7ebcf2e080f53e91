"""Named colours, perceptual distances between them (CIELAB), and repainting of flat artwork."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Names of the colours of things, and the paint of each.
THINGS = {
    "red": "#DD2E44",
    "orange": "#F4900C",
    "yellow": "#FFD02E",
    "green": "#4CA63A",
    "blue": "#2F80E8",
    "purple": "#8E52CC",
    "pink": "#F98BB9",
    "brown": "#8A5536",
    "beige": "#FAE3B8",
    "black": "#26292C",
    "white": "#F4F6F7",
    "gray": "#98A4AD",
}
# The other names of THINGS are used only for artwork that has the colour unpainted.
PAINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
BACKGROUNDS = {
    "white": "#FFFFFF",
    "red": "#E8574F",
    "orange": "#FFAC5F",
    "yellow": "#FFE17A",
    "green": "#7CC576",
    "light green": "#BCE8B4",
    "teal": "#4FB5AE",
    "blue": "#5B9BE8",
    "light blue": "#B5DCF5",
    "purple": "#B79CE0",
    "pink": "#FFC2D4",
    "gray": "#C2C6CA",
    "black": "#1E2022",
}
GREY_CHROMA = 14.0  # a colour of less looks grey, black or white
SAME_HUE = np.deg2rad(40.0)
SAME_GREY = 22.0  # in lightness


def rgb(code: str) -> tuple[int, int, int]:
    """Parse `#RRGGBB` or `#RGB` to three bytes."""
    digits = code.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """Convert sRGB bytes (..., 3) to CIELAB under D65, float64 (..., 3)."""
    c = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB (..., 3) to the nearest sRGB bytes (..., 3)."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE
    linear = np.clip(xyz @ np.linalg.inv(_RGB_TO_XYZ).T, 0, 1)
    c = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(c * 255).astype(np.uint8)


def nearest(lab: np.ndarray) -> np.ndarray:
    """Index into THINGS of the nearest named colour for each of (..., 3)."""
    return np.linalg.norm(lab[..., None, :] - _THINGS_LAB, axis=-1).argmin(-1)


def share(palette: Mapping[str, float], name: str) -> float:
    """Return the share of a palette {`#RRGGBB`: share of the opaque pixels} that is nearest the colour `name`."""
    hits = nearest(to_lab(np.array([rgb(code) for code in palette]))) == list(THINGS).index(name)
    return float(np.array(list(palette.values()))[hits].sum())


def is_coloured(palette: Mapping[str, float], name: str) -> bool:
    """Return whether more than half of the pixels are nearest the colour `name`: then captions use this name."""
    return share(palette, name) > 0.5


def repaint(palette: Mapping[str, float], name: str) -> dict[str, str]:
    """Map the shades of a palette's main colour to shades of the colour `name`."""
    codes = list(palette)
    lab = to_lab(np.array([rgb(code) for code in codes]))
    weights = np.array(list(palette.values()))
    main = _main_colours(lab, weights)
    target = to_lab(np.array(rgb(THINGS[name])))
    middle = np.average(lab[main, 0], weights=weights[main])
    painted = np.repeat(target[None], len(codes), axis=0)
    painted[:, 0] = np.clip(target[0] + 0.7 * (lab[:, 0] - middle), 8, 97)
    painted[:, 1:] *= np.minimum(1, painted[:, :1] / target[0])  # darker shades are less colourful
    new = from_lab(painted)
    return {codes[i]: "#{:02X}{:02X}{:02X}".format(*new[i]) for i in np.flatnonzero(main)}


def _main_colours(lab: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Select the colours (K, 3) of the most frequent hue, or greys of similar lightness, as a mask (K,)."""
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    hue = np.arctan2(lab[:, 2], lab[:, 1])
    grey = chroma < GREY_CHROMA
    turn = np.abs((hue[:, None] - hue + np.pi) % (2 * np.pi) - np.pi)
    alike = ~grey[:, None] & ~grey & (turn < SAME_HUE)
    alike |= grey[:, None] & grey & (np.abs(lab[:, None, 0] - lab[:, 0]) < SAME_GREY)
    result: np.ndarray = alike[(alike @ weights).argmax()]
    return result


_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_THINGS_LAB = to_lab(np.array([rgb(code) for code in THINGS.values()]))
