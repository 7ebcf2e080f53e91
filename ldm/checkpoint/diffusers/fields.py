from ldm.storage.fields import *  # noqa: F403
