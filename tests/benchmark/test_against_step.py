"""What the cores give against what the step takes."""

import json
import re
import time
import types

import numpy as np
import pytest

from noah_jax.benchmark import against_step, machines
from noah_jax.benchmark.__main__ import main
from noah_jax.benchmark.against_step import Gap
from noah_jax.benchmark.input import Turn
from noah_jax.benchmark.machines import COMPILED, MEASURED, StepSpeed, parse_machine, step_speed
from noah_jax.benchmark.photographs import Photographs, ShrunkSource
from noah_jax.config import default_config
from noah_jax.data.decoding import decode
from noah_jax.data.lighter import lighter_settings
from noah_jax.data.source import AbsentSource
from noah_jax.errors import InputError
from noah_jax.models import create_model
from tests.helpers import ROOT

# How `docs/results.md` calls the models of the tables.
TITLES = {
    "deit_base_patch16_224": "DeiT-Base",
    "deit_small_patch16_224": "DeiT-Small",
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "mixer_b16_224": "Mixer-B/16",
    "mixer_s16_224": "Mixer-S/16",
    "mobilenetv2_100": "MobileNetV2",
    "pvt_tiny": "PVT-Tiny",
    "resnet50": "ResNet-50",
}


@pytest.mark.parametrize(
    ("name", "devices", "vcpus", "host"),
    [
        ("h100:8", 8, 208, "a3-highgpu-8g"),
        ("h100", 8, 208, "a3-highgpu-8g"),
        ("h100:1", 1, 26, "a3-highgpu-1g"),
        ("h100:16", 16, 416, "2 x a3-highgpu-8g"),
        ("v5e", 8, 224, "ct5lp-hightpu-8t"),
        ("v5e:2x2", 4, 112, "ct5lp-hightpu-4t"),
        ("v5e:4x4", 16, 448, "4 x ct5lp-hightpu-4t"),
        ("v5p:2x2x4", 16, 832, "4 x ct5p-hightpu-4t"),
    ],
)
def test_a_machine_has_the_cores_of_its_hosts(name, devices, vcpus, host):
    assert parse_machine(name)[2:] == (devices, vcpus, host)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "'tpu' is unknown; it is one of h100:8, v4:4, "),
        ("h100:3", "hosts have 1, 2, 4, 8 devices, and several have 8 each"),
        ("v5e:0x2", "'0x2' is no number of devices"),
        ("v5e:x", "'x' is no number of devices"),
    ],
)
def test_machines_that_do_not_exist(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_machine(name)


def test_recorded_speeds_are_those_of_the_results():
    rows = (ROOT / "docs" / "results.md").read_text()
    for name, speed in MEASURED["h100"].items():
        assert re.search(rf"^\| {_title(name)} \|.* {speed:,}\b", rows, re.MULTILINE), name
    for kind, cycles in COMPILED.items():
        for name, millions in cycles.items():
            row = rf"^\| {_title(name)}(, {kind})? \|.* {millions:.2f}\b"
            assert re.search(row, rows, re.MULTILINE), name


def _title(name: str) -> str:
    return re.escape(TITLES[name.removeprefix("noah_")])


def test_the_speed_of_a_step_says_where_it_is_from():
    model = types.SimpleNamespace(name="noah_resnet50")
    measured = step_speed(parse_machine("h100:8"), model)
    assert measured.images_per_second == 8 * 5_388 and "measured on one h100" in measured.source
    compiled = step_speed(parse_machine("v5e:1"), model)
    # 128 images in 108.8 million cycles at 1.5 GHz.
    assert compiled.images_per_second == pytest.approx(1_768, rel=0.001)
    assert re.match(r"1 x 1,768, compiled: 108.8 million cycles for 128 images", compiled.source)


def test_an_unknown_step_reaches_what_the_nearest_known_one_does(monkeypatch):
    monkeypatch.setattr(machines, "MEASURED", {"h100": {"resnet18": 12_000}})
    monkeypatch.setattr(machines, "COMPILED", {"v5e": {"resnet34": 99.0, "resnet18": 50.0}})
    model = create_model("noah_resnet18")  # a few more FLOPs than with a linear head
    guess = step_speed(parse_machine("h100:2"), model)
    assert guess.images_per_second == pytest.approx(2 * 12_000, rel=0.05)
    assert re.search(r"estimated at \d+ % of the peak, as resnet18 on one h100$", guess.source)
    # 128 images in 50 million cycles at 1.5 GHz; a v6e has 918 TFLOP/s, a v5e 197.
    guess = step_speed(parse_machine("v6e:1"), model)
    assert guess.images_per_second == pytest.approx(3_840 * 918 / 197, rel=0.05)
    assert guess.source.endswith("% of the peak, as resnet18 on one v5e")


def test_the_advice_names_the_first_setting_that_is_enough():
    speeds = {"as configured": 100.0, "a": 150.0, "b": 250.0, "a and b": 300.0}
    assert (
        Gap(190, speeds, 2).advice().endswith("105 % of what the step takes: the step is the limit")
    )
    assert Gap(290, speeds, 2).advice().endswith("; a closes the gap (103 %)")
    assert Gap(450, speeds, 2).advice().endswith("; b closes the gap (111 %)")
    assert (
        Gap(6_000, speeds, 2)
        .advice()
        .endswith(
            "; no setting closes the gap. a and b comes nearest (10 %) and needs 20 cores, not 2"
        )
    )


def test_settings_that_are_in_force_or_do_not_help_are_left_out():
    section = default_config().data
    assert [x.name for x in lighter_settings(section)] == ["data.approximate_decode=True"]
    section.rand_augment.num_ops = 2
    assert len(lighter_settings(section)) == 2
    section.loader = "dali"
    assert not lighter_settings(section)
    section.loader, section.augment_on_device, section.cache = "host", True, True
    assert not lighter_settings(section)


def test_photographs_stand_for_images_that_are_not_here(monkeypatch):
    monkeypatch.setattr("noah_jax.benchmark.photographs._DIFFERENT", 2)
    source = Photographs(AbsentSource("set", ["a", "b", "c"], 1_000, multi_label=True))
    assert len(source) == 1_000
    data, label = source[999]
    np.testing.assert_array_equal(label, [0, 0, 0])
    assert decode(data).shape == (375, 500, 3)
    monkeypatch.setattr("noah_jax.benchmark.photographs._SHRUNK", 2)
    small = ShrunkSource(source, 100)
    assert small.shrunk and len(small) == 2 and decode(small[1][0]).shape == (75, 100, 3)
    same = ShrunkSource(source, 500)
    assert not same.shrunk and same[0][0] == source[0][0]


def test_the_step_is_timed(monkeypatch):
    def step(state, batch):
        time.sleep(0.01)
        return state + 1, batch

    traced = types.SimpleNamespace(lower=lambda: types.SimpleNamespace(compile=lambda: step))
    setup = types.SimpleNamespace(
        steps=types.SimpleNamespace(trace_train_step=lambda: traced),
        states=types.SimpleNamespace(create=lambda: 0),
        inputs=types.SimpleNamespace(train_batches=lambda start: iter([1])),
        model=types.SimpleNamespace(name="toy"),
        plan=types.SimpleNamespace(batch_size=8),
        mesh=types.SimpleNamespace(size=1),
    )
    monkeypatch.setattr(against_step, "_STEP_SECONDS", 0.03)
    speed = against_step.measure_step(setup)
    assert 0 < speed.images_per_second <= 800
    assert re.match(r"measured here, [1-3] steps on 1 x ", speed.source)


@pytest.mark.parametrize("here", [True, False])
def test_the_program(here, tiny_config, tmp_path, monkeypatch, capsys):
    """On this machine, and for another one."""
    tiny_config.data.rand_augment.num_ops = 2
    monkeypatch.setattr(against_step, "load_config", lambda args: tiny_config)

    def measure(contenders, *, batch, rounds, seconds):
        for batches in contenders.values():
            assert len(next(batches)["image"]) == batch
        return {name: [Turn(100.0, 2.0)] * rounds for name in contenders}

    monkeypatch.setattr(against_step, "measure", measure)
    monkeypatch.setattr(against_step, "measure_step", lambda setup: StepSpeed(3.0, "measured here"))
    record = tmp_path / "record.json"
    options = [] if here else ["--machine=v5e:4", "--step-images-per-second=1000000000"]
    words = ["--what=input", "--against-step", "--config=any.py", "--rounds=1", "--batch=4"]
    assert main([*words, *options, f"--json={record}"]) == 0
    out = capsys.readouterr().out
    assert "| data.augment_on_device=True |" in out and (" | 112 cores | " in out) != here
    if here:
        assert "3 images/s: measured here" in out and out.endswith(": the step is the limit\n")
    else:
        assert "ct5lp-hightpu-4t" in out and "1,000,000,000 images/s: as you say" in out
        assert "no setting closes the gap" in out
    written = json.loads(record.read_text())
    assert written["needed"] == (3 if here else 1e9)
    assert written["of_a_core"] == {"as configured": 500, "data.augment_on_device=True": 500}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against-step", "--folder", "x"], "--config.dataset=folder:PATH"),
        (
            ["--against-step", "--config=quickstart.py", "--config.data.loader=dali"],
            "add --config.data.loader=host",
        ),
        (["--machine=h100:8"], "go with --against-step"),
        (["--config=quickstart.py"], "go with --against-step"),
    ],
)
def test_options_that_do_not_go_together(words, message, capsys):
    assert main(["--what=input", *words]) == 1
    assert message in capsys.readouterr().err
