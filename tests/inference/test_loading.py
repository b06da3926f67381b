"""Loading trained models, and their predictions."""

import doctest
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax import load_model
from noah_jax.errors import InputError
from noah_jax.inference import loading
from noah_jax.inference.device_memory import raise_if_out_of_memory
from noah_jax.inference.trained import load_one


def test_the_example_of_load_model():
    results = doctest.testmod(loading)
    assert results.attempted and not results.failed


def test_a_trained_model_predicts_by_its_own_preprocessing(tiny_run, class_folders):
    trained = load_one(tiny_run)
    file = f"{class_folders}/val/bee/03.png"
    pixels = trained.preprocessing.transform()(np.asarray(Image.open(file)))[None]
    mean, std = np.array(trained.preprocessing.mean), np.array(trained.preprocessing.std)
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    model, params, stats = load_model(tiny_run)
    expected = jax.jit(model.apply, static_argnames="train")(params, stats, images, train=False)[0]
    assert np.allclose(trained.predict(pixels), expected, atol=1e-4)
    assert np.allclose(trained.predict(images), expected, atol=1e-4)


def test_a_similar_name_is_suggested(tiny_run):
    wrong = pathlib.Path(tiny_run).parent / "rum"
    with pytest.raises(FileNotFoundError, match=r"did you mean .*run\?"):
        load_model(str(wrong))


def test_a_corrupt_description_is_one_line(tmp_path):
    for text, words in (("{", "cannot be read"), ("[]", "does not describe a model")):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(InputError, match=words):
            load_model(str(tmp_path))


def test_exhausted_memory_is_one_line():
    import jax

    for text, kind in (
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", InputError),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError),
    ):
        with pytest.raises(kind), raise_if_out_of_memory("a batch of 8 images"):
            raise jax.errors.JaxRuntimeError(text)
