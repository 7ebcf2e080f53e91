"""Names of a shard's members: the key that the members of a sample share, and the suffix that distinguishes them.

WebDataset ends the key at the first dot of the file name: `photo.v0.png` and `photo.v1.png` are one sample to it.
Here it ends before the last extensions, of which a name may have several, such as `photo.v0.map.png`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

META = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips
# Words that stand before the last extension and are part of the suffix.
ROLES = re.compile(
    "map|seg|mask|depth|canny|edges?|normal|pose|control|cond|conditioning|image|img|input|output|source|target|original|"
    "edited|left|right|before|after|captions?|text|prompt|tags|meta|metadata|info|cls|label|latents?|emb|embedding|"
    "features|png|jpe?g|webp|json|txt|np[yz]|pth?|pkl|tar",
    re.IGNORECASE,
)


def split_name(name: str) -> tuple[str, str] | tuple[None, None]:
    """Split a member's name into the sample's key and the suffix; (None, None) if it belongs to no sample."""
    path = PurePosixPath(name)
    stem, *parts = path.name.split(".")
    if not stem or not parts or META.match(name):
        return None, None
    first = len(parts) - 1
    while first > 0 and ROLES.fullmatch(parts[first - 1]):
        first -= 1
    suffix = ".".join(parts[first:])
    return name[: -len(suffix) - 1], suffix
