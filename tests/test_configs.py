"""The configurations of the published results, pinned, and each one's learning rates."""

import difflib
import importlib.util
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from noah_jax.config import default_config
from noah_jax.config_flags import parse_config
from noah_jax.config_values import check_values
from noah_jax.data.prepare_labelled import absent_labelled
from noah_jax.errors import UsageError
from noah_jax.models import get_architecture
from noah_jax.models.published import published
from noah_jax.recipes import multi_label_variants
from noah_jax.train.schedules import make_schedule
from noah_jax.train.setup import build
from tests.helpers import GOLDEN, ROOT, write_coco

CONFIGS = ROOT / "configs"
FAMILIES = ("resnet", "mobilenetv2", "mobilenetv3", "shufflenetv2", "deit", "pvt", "mlp")


MULTI_LABEL = ("coco", "voc")


def _load(family):
    path = CONFIGS / f"{family}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{family}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _variants():
    """`(family, variant, configuration)` of each."""
    for family in FAMILIES:
        module = _load(family)
        for prefix in ("", "noah_"):
            for backbone in module.BACKBONES:
                yield family, prefix + backbone, module.get_config(prefix + backbone)


def _text() -> str:
    """The defaults, and for each variant what differs and what its model adds."""
    defaults = flatten_dict(default_config().to_dict(), sep=".")
    lines = [f"default {key} = {value!r}" for key, value in defaults.items()]
    for family, variant, config in _variants():
        lines += [f"\n{family}:{variant}", *_differing(config, defaults)]
        facts = get_architecture(variant)
        own = ["image_size", "mean", "std", "decay_all", "no_decay"]
        own += ["head_num", "key_ratio"] if variant.startswith("noah_") else []
        lines += [f"  {key} is the model's {getattr(facts, key)!r}" for key in own]
    for family in MULTI_LABEL:
        for variant in multi_label_variants():
            if variant.startswith(("noah_", "ml_decoder_")):
                continue  # Only model.head differs.
            config = _load(family).get_config(variant)
            lines += [f"\n{family}:{variant}", *_differing(config, defaults)]
    return "\n".join(lines) + "\n"


def _differing(config, defaults) -> list[str]:
    values = flatten_dict(config.to_dict(), sep=".")
    return [f"  {key} = {value!r}" for key, value in values.items() if value != defaults[key]]


def test_nothing_has_changed(golden):
    """After a change that is meant: `python tests/test_configs.py`, and read the difference."""
    pinned = (golden / "configs.txt").read_text()
    difference = difflib.unified_diff(pinned.splitlines(), _text().splitlines(), "pinned", "now")
    assert pinned == _text(), "\n".join(difference)


def test_every_published_row_has_a_variant():
    assert {variant for _, variant, _ in _variants()} == published().keys()


def test_the_files_tell_the_published_accuracy():
    for family in FAMILIES:
        module = _load(family)
        for backbone in module.BACKBONES:
            linear, noah = (published()[p + backbone].top1 for p in ("", "noah_"))
            rows = [line.split() for line in module.__doc__.splitlines()]
            assert [backbone, f"{linear:.2f}", f"{noah:.2f}"] in rows


def test_evaluation_is_the_published_one():
    for _, variant, config in _variants():
        facts = get_architecture(variant)
        assert config.data.eval_resize == int(facts.image_size[0] / facts.crop_pct)
        interpolation = config.data.eval_interpolation or config.data.interpolation
        assert interpolation == facts.interpolation


def test_learning_rates_are_the_originals(golden):
    expected = json.loads((golden / "schedules.json").read_text())["lr"]
    for family, variant, config in _variants():
        key = "mobilenet" if family.startswith("mobilenet") else family.removesuffix("v2")
        rates = expected[key]
        assert config.epochs == len(rates)
        schedule = make_schedule(config.optim, epochs=config.epochs, steps_per_epoch=10)
        got = jax.vmap(schedule)(10 * np.arange(len(rates)) + 5)
        np.testing.assert_allclose(got, rates, rtol=1e-6, err_msg=variant)


@pytest.mark.parametrize(
    "variant",
    [
        "resnet:noah_resnet18",
        "mobilenetv2:mobilenetv2_035",
        "mobilenetv3:noah_mobilenetv3_small",
        "shufflenetv2:noah_shufflenetv2_100",
        "deit:noah_deit_tiny_050_patch16_224",
        "pvt:pvt_tiny_050",
        "mlp:noah_mixer_s16_050_224",
    ],
)
def test_a_variant_of_each_file_is_built(variant, class_folders, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    family, _, name = variant.partition(":")
    words = [f"--config=configs/{family}.py:{name}", f"--config.dataset={class_folders}"]
    words += ["--config.epochs=1500", "--config.optim.warmup_epochs=0"]
    config = parse_config(words)
    setup = build(config)
    assert setup.model.name == name and setup.model.num_classes == 3


@pytest.mark.parametrize("variant", multi_label_variants())
def test_multi_label_variants_fit(variant):
    for family in MULTI_LABEL:
        config = _load(family).get_config(variant)
        check_values(config)
        architecture = get_architecture(config.model.name)
        assert architecture.head_num and str(config.model.image_size) in variant
        assert config.model.head is None or variant.startswith(f"{config.model.head}_")
        # A whole run of this recipe has a schedule, and ends low.
        rate = make_schedule(config.optim, epochs=config.epochs, steps_per_epoch=100)
        assert float(rate(round(100 * config.epochs) - 1)) < 1e-5 * config.optim.learning_rate * 3


@pytest.mark.parametrize(
    "variant", ["coco:csra_resnet101_448", "coco:ml_decoder_resnet101_448", "voc:vit_large_224_sgd"]
)
def test_multi_label_variants_are_built_without_the_images(variant):
    family, _, name = variant.partition(":")
    config = parse_config([f"--config={CONFIGS}/{family}.py:{name}", "--config.batch_size=8"])
    setup = build(config, sources=absent_labelled(config.dataset))
    head, options = (setup.model.arguments[key] for key in ("head", "head_options"))
    assert name.startswith(head) or head == "linear"
    if head == "csra":
        assert options == {"num_heads": 4, "lam": 0.5}
    assert setup.model.num_classes == {"coco": 80, "voc": 20}[family]
    assert setup.task.label_shape == (setup.model.num_classes,)
    assert (setup.param_groups.rates == {}) == ("_sgd" not in name)


def test_a_multi_label_variant_is_built(tmp_path):
    write_coco(tmp_path, "2014")
    words = [f"--config={CONFIGS}/coco.py:noah_resnet101_576", f"--config.dataset=coco:{tmp_path}"]
    setup = build(parse_config([*words, "--config.batch_size=8"]))
    assert setup.model.image_size == (576, 576) and setup.model.num_classes == 3
    assert setup.model.arguments["head"] == "noah" and setup.preprocessing.resize == "squash"
    with pytest.raises(UsageError, match=r"resnet101_448, .* did you mean noah_res"):
        parse_config([f"--config={CONFIGS}/coco.py:noah_resnet_448"])


def test_a_variant_must_be_one(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for variant, words in (("", "got none"), (":noah_resnet19", "did you mean noah_resnet1")):
        with pytest.raises(
            UsageError, match=f"^--config FILE:VARIANT needs .* variants resnet18, .* {words}"
        ):
            parse_config([f"--config=configs/resnet.py{variant}"])


if __name__ == "__main__":
    (GOLDEN / "configs.txt").write_text(_text())
