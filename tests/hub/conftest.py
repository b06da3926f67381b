"""The hub that the tests of this room ask, and a small model to keep there."""

import importlib
import json

import pytest
from safetensors.numpy import save

from tests.hub import fake_hub
from tests.pytorch.files import torch_files as files

NAME = "noah_resnet18"
SIZES = dict(width=4, num_classes=5, image_size=32)


@pytest.fixture(scope="session")
def _server():
    with fake_hub.running() as server:
        yield server


@pytest.fixture
def hub(_server, tmp_path, monkeypatch):
    """A hub without repositories, and an empty cache."""
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    _server.clear()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The library reads its variables when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", _server.url)
    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.hf_api").api, "endpoint", _server.url
    )
    template = _server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _server


@pytest.fixture(scope="session")
def weights() -> bytes:
    """A safetensors file of a small ResNet with a linear head, by timm's names."""
    state = files.golden_state("resnet18", **SIZES)
    return save({key.replace("head.2.", "fc."): value for key, value in state.items()})


@pytest.fixture
def timm_config() -> bytes:
    cfg = {
        "input_size": [3, 160, 160],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    names = ["ant", "bee", "cat", "dog", "elk"]
    config = {"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": cfg}
    return json.dumps(config | {"label_names": names}).encode()
