"""Tables that Hugging Face `datasets` opens."""

from __future__ import annotations

from typing import Any

from ldm.errors import UserError


def load_table(kind: str, data: str, **options: Any) -> Any:
    """The `train` split of a Hub data set, or of files of a kind (json, csv, parquet); UserError in one line."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.utils import logging

    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # what it logs is said again in the error
    try:
        return load_dataset(kind, split="train", **options)
    except Exception as error:  # `datasets` raises dozens of types for missing, broken and unreachable data
        # Its own last word is often only that something went wrong before.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise UserError(f"data {data!r} cannot be opened: {reason}") from error
