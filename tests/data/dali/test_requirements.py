"""Where DALI cannot be used, one line says so; these tests need no DALI."""

import importlib.util
from types import SimpleNamespace

import pytest

from noah_jax.data.dali import requirements
from noah_jax.errors import InputError, MissingPackageError
from noah_jax.train.setup import build


def _no_folder(name):
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("find_spec", [lambda name: None, _no_folder])
def test_dali_is_not_installed(tiny_config, monkeypatch, find_spec):
    tiny_config.data.loader = "dali"
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingPackageError, match=r"NVIDIA DALI: pip install 'noah-jax\[dali\]'"):
        build(tiny_config)


def _device(platform: str, version: str = "") -> SimpleNamespace:
    return SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))


@pytest.mark.parametrize(
    ("device", "words"),
    [(_device("tpu"), "on TPU"), (_device("gpu", "PJRT\nROCm 7"), "on AMD's GPUs")],
)
def test_other_devices_are_refused(device, words):
    with pytest.raises(InputError, match=rf"{words}: set data.loader=host"):
        requirements.decodes_on_gpu([device])


def test_nvidias_gpus_decode_and_the_cpu_does():
    assert requirements.decodes_on_gpu([_device("gpu", "cuda 13000")])
    assert not requirements.decodes_on_gpu([_device("cpu")])


@pytest.fixture
def dali_config(tiny_config, monkeypatch):
    monkeypatch.setattr("noah_jax.train.setup.check_installed", lambda: None)
    tiny_config.data.loader = "dali"
    return tiny_config


@pytest.mark.parametrize("key", ["cache", "approximate_decode"])
def test_keys_of_the_hosts_decoder_are_refused(dali_config, key):
    dali_config.data[key] = True
    with pytest.raises(InputError, match=f"data.{key}=True is about images that the host decodes"):
        build(dali_config)


def test_the_augmentation_is_left_to_the_step(dali_config):
    dali_config.data.color_jitter = 0.4
    assert build(dali_config).inputs.train_transform.on_device
    dali_config.data.loader = "host"
    assert not build(dali_config).inputs.train_transform.on_device
