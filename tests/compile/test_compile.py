"""The train step compiled ahead: what its text says, and that it exchanges what it must alone."""

import json
import os
import subprocess
import sys
import types

import pytest
from ml_collections import ConfigDict

from noah_jax.aot import targets
from noah_jax.compile import analysis
from noah_jax.compile.__main__ import main
from noah_jax.data.imagenet import absent_imagenet
from noah_jax.errors import CompileError, InputError
from noah_jax.models.published import published
from noah_jax.train.setup import build
from tests.helpers import ROOT
from tests.quick_compile import environment

CONFIG = """
from noah_jax.config import default_config

def get_config(variant):
    config = default_config()
    if variant == "resnet":
        config.model.name = "noah_resnet18"
        config.model.image_size = 16
        config.model.stem = "small"
        config.model.width = 4
        config.model.depths = (1, 1, 1, 1)
        config.model.batch_norm_group = 8
    else:
        config.model.name = "deit_tiny_050_patch16_224"
        config.model.image_size = 32
        config.model.depth = 1
    config.batch_size = config.eval_batch_size = 64
    config.mixup = 0.8
    config.cutmix = 1.0
    config.mix_group = 8
    config.erase_prob = 0.5
    config.ema_decay = 0.99
    return config
"""


@pytest.fixture
def start(tmp_path):
    """The program in a process of its own: virtual devices are counted once in a process."""
    (tmp_path / "tiny.py").write_text(CONFIG)

    def run(variant, *words):
        config = f"--config={tmp_path}/tiny.py:{variant}"
        return subprocess.Popen(
            [sys.executable, "-m", "noah_jax.compile", config, *words],
            cwd=ROOT,
            # What the devices exchange is the same without LLVM's optimisations.
            env=os.environ | environment(quick=True) | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def output_of(process, *, code):
    out, err = process.communicate()
    assert process.returncode == code, err
    return out


def test_a_step_on_eight_devices_exchanges_gradients_and_statistics_alone(start):
    within = start("resnet", "--topology=cpu:8", "--config.eval_batch_size=100", "--json")
    report = json.loads(output_of(within, code=0))
    assert report["num_devices"] == 8 and report["fits"]
    assert {c["kind"] for c in report["collectives"]} == {"all-reduce"}
    assert {c["group_size"] for c in report["collectives"]} == {8}
    sent = sum(c["bytes"] * c["number"] for c in report["collectives"])
    # The two scalars are the sums of the loss and of the accuracy. Of NOAH's biases the scores'
    # has no gradient, since softmax does not see it, and the values' has the same in all blocks.
    expected = report["parameter_bytes"] + report["statistics_bytes"] + 2 * 4
    biases = 2 * 4 * 4 * 10
    assert expected - biases <= sent <= expected
    assert report["donation"]["honoured"] and report["donation"]["arrays"] > 100
    # The state's bytes; the learning rate's two scalars are overwritten unread.
    assert report["donation"]["bytes"] == report["state_bytes"] - 2 * 4
    assert report["flops"] > 1e6 and report["bytes_accessed"] > 1e6
    needed = ("arguments", "temporaries", "output", "code")
    assert report["memory"]["needed"] == sum(report["memory"][part] for part in needed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "mix_group", "group"),
    [(64, 8, 16), (96, 12, 8)],  # on two devices; across the borders between two
)
def test_batch_norm_groups_that_span_devices_exchange_sums_alone(
    start, batch_size, mix_group, group
):
    words = [f"--config.{key}={batch_size}" for key in ("batch_size", "eval_batch_size")]
    words += [f"--config.mix_group={mix_group}", f"--config.model.batch_norm_group={group}"]
    report = json.loads(output_of(start("resnet", "--topology=cpu:8", "--json", *words), code=0))
    assert {c["kind"] for c in report["collectives"]} == {"all-reduce"}
    # No more than the gradients, and of each layer a few numbers for a channel and group.
    sent = sum(c["bytes"] * c["number"] for c in report["collectives"])
    groups = batch_size // group
    assert sent < report["parameter_bytes"] + 4 * groups * report["statistics_bytes"]


@pytest.mark.slow
def test_groups_that_span_devices_exchange_more(start):
    spanning = start("deit", "--topology=cpu:8", "--config.mix_group=16", "--json")
    report = json.loads(output_of(spanning, code=0))
    assert {c["kind"] for c in report["collectives"]} > {"all-reduce"}


@pytest.mark.parametrize(
    ("group", "unforeseen", "through", "expected"),
    [
        (64, 0, [256], 256),  # as foreseen: a quarter
        (64, 1000, [256, 128], 128),
        (64, 3000, [256, 128, 64], None),
        (512, 0, [256], None),
    ],
)
def test_a_smaller_batch_is_compiled_until_one_fits(
    group, unforeseen, through, expected, monkeypatch
):
    tried = []

    def compile_for(config, target):
        tried.append(config.batch_size)
        if config.batch_size % group:
            raise InputError("mix_group does not divide the batch")
        needed = 100 + 10 * config.batch_size + unforeseen * (config.batch_size < 1024)
        memory = analysis.Memory(needed=needed, limit=3000)
        return types.SimpleNamespace(
            batch_size=config.batch_size,
            num_devices=64,
            state_bytes=100,
            memory=memory,
            fits=memory.fits,
        )

    monkeypatch.setattr(analysis, "compile_for", compile_for)
    config = ConfigDict({"batch_size": 1024})
    unfit = compile_for(config, None)
    tried.clear()
    smaller = analysis.smaller_batch(config, None, unfit)
    assert (smaller and smaller.batch_size) == expected and tried == through
    assert config.batch_size == 1024


@pytest.mark.slow
def test_a_batch_that_does_not_fit_names_one_that_does(start):
    unfit = start("deit", "--topology=cpu:8", f"--config.batch_size={2**26}", "--config.epochs=1e9")
    out = output_of(unfit, code=1)
    assert "DOES NOT FIT" in out
    smaller = int(out.rpartition("batch_size=")[2].split()[0])
    assert 64 <= smaller < 2**26 and "fits: " in out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(published()))
def test_each_recipe_fits_sixteen_chips_or_says_what_does(variant):
    pytest.importorskip("libtpu")
    words = ["--all", f"--models={variant}", "--topology=v5e:4x4", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "noah_jax.compile", *words, "--config.model.dtype=bfloat16"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(ran.stdout)
    assert report["model"] == variant and ran.returncode == (0 if report["fits"] else 1)
    assert report["fits"] or report["fitting_batch_size"]
    # Chips exchange gradients, and images where those that are mixed lie on two: no activations.
    images_of_a_chip = 4 * 3 * 224**2 * report["batch_size"] // 16
    sent = sum(c["bytes"] * c["number"] for c in report["collectives"])
    assert sent <= report["parameter_bytes"] + images_of_a_chip
    assert report["estimated_cycles"] is None or report["donation"]["honoured"]


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (68.5G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
        " hbm. Used 68.5G of 15.75G hbm. Exceeded hbm capacity by 52.62G.",
    ],
)
def test_what_a_refused_program_needs_is_read(text):
    memory = analysis.needed_memory(ValueError(text))
    assert memory == analysis.Memory(needed=int(68.5 * 2**30), limit=int(15.75 * 2**30))


def test_another_error_of_the_compiler_is_no_lack_of_memory():
    with pytest.raises(CompileError, match="INTERNAL"):
        analysis.needed_memory(ValueError("INTERNAL: (3) of (4)"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--topology is needed"),
        (["--topology=v7:2x2"], "'v7:2x2' is unknown; it is v4:2x2x4"),
        (["--topology=cpu:0"], "'cpu:0' is unknown"),
        (["--topology=v5e:2x2"], "v5e:2x2 needs the TPU's compiler: pip install libtpu"),
        (["--topology=h100:8"], "h100:8 needs XLA's compiler for GPUs: pip install"),
        (["--topology=h100:9"], "hosts have 8 H100 each"),
        (["--topology=cpu:8", "--config.batchsize=3"], "no key batchsize; did you mean batch_size"),
        (["--topology=cpu:8", "--all", "--models=vgg*"], "no variant of the packaged"),
    ],
)
def test_mistakes_are_one_line(words, expected, monkeypatch, capsys):
    def no_plugin(**unused):
        raise NotImplementedError

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", no_plugin)
    config = [] if "--all" in words else ["--config=configs/quickstart.py"]
    assert main([*config, *words]) == 1
    out, err = capsys.readouterr()
    assert expected in err and err.count("\n") == 1 and not out


def test_imagenet_need_not_be_here(tiny_config):
    tiny_config.dataset = "imagenet2012"
    setup = build(tiny_config, sources=absent_imagenet())
    assert setup.model.num_classes == 1000
    assert setup.plan.steps_per_epoch == 1_281_167 / tiny_config.batch_size
    assert len(setup.inputs.eval_source) == 50_000
    with pytest.raises(ValueError, match="image 0 of imagenet2012:train is not on this machine"):
        setup.inputs.train_source[0]
