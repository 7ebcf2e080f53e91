from ldm.storage.store import *  # noqa: F403
