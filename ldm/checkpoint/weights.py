from ldm.storage.weights import *  # noqa: F403
