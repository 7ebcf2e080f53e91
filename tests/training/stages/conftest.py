"""What several tests of stages need: a saved autoencoder."""

import pytest
from tiny_stages import Colours, autoencoder_stage


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    stage, folder = autoencoder_stage(), tmp_path_factory.mktemp("first")
    stage.finish(Colours())
    stage.save(folder)
    return str(folder / "vae")
