"""The benchmark of the head and its tables."""

import datetime
import importlib.util

import jax
import pytest

from noah_jax.aot.head_shape import HeadShape, head_shape
from noah_jax.aot.operations import Operation
from noah_jax.benchmark import compiled_steps, head
from noah_jax.benchmark.__main__ import main
from noah_jax.errors import InputError
from noah_jax.models import create_model

SHAPE = HeadShape((3, 3), 32, 2, 0.25, 7)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(head, "_SECONDS", 0.0)
    monkeypatch.setattr(head, "_REST", 0.0)


def test_each_head_is_measured():
    torch = importlib.util.find_spec("torch") is not None
    heads = "reference", "auto"
    costs, missing = head.benchmark_head(SHAPE, heads, batch=2, rounds=2, torch=torch)
    assert list(costs) == ["linear", "reference", "auto"] + ["PyTorch"] * torch and not missing
    assert all(cost.forward.median > 0 and cost.both.spread >= 0 for cost in costs.values())
    assert costs["reference"].both_bytes > costs["linear"].both_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_of_the_features(dtype, monkeypatch):
    seen = set()

    def poca(features, *weights, **options):
        seen.add(str(features.dtype))
        return actual(features, *weights, **options)

    actual = head.poca
    monkeypatch.setattr(head, "poca", poca)
    costs, _ = head.benchmark_head(SHAPE, ["auto"], batch=2, rounds=1, torch=False, dtype=dtype)
    assert seen == {"float32", dtype}  # the definition's own logits are computed in float32
    assert list(costs) == ["linear", "auto"]


def test_heads_of_other_platforms_are_named_not_measured():
    costs, missing = head.benchmark_head(
        SHAPE, ["tpu", "gpu", "xla"], batch=2, rounds=1, torch=False
    )
    assert list(costs) == ["linear", "xla"]
    assert list(missing) == ["tpu", "gpu"] and all(missing.values())


def test_a_head_with_other_logits_is_an_error(monkeypatch):
    def wrong(*arguments, implementation, **options):
        factor = 1 if implementation == "reference" else 1.01
        return factor * actual(*arguments, implementation=implementation, **options)

    actual = head.poca
    monkeypatch.setattr(head, "poca", wrong)
    with pytest.raises(InputError, match="auto: the logits differ"):
        head.benchmark_head(SHAPE, ["auto"], batch=2, rounds=1, torch=False)


def test_shapes_are_those_of_the_models():
    shape = head_shape(create_model("noah_resnet50"))
    assert shape == ((7, 7), 2048, 4, 1 / 8, 1000, True, 0.0)
    shape = head_shape(create_model("noah_deit_tiny_patch16_224", num_classes=5))
    assert shape == ((14, 14), 192, 4, 1 / 2, 5, False, 0.0)


def test_floor():
    assert SHAPE.flops(2) == 2 * 2 * 9 * 32 * 7
    assert SHAPE.bytes(2) == 4 * (2 * 9 * 32 + (32 + 4) * 7 + 2 * 7)
    assert SHAPE.bytes(2, 2) == 2 * 2 * 9 * 32 + 4 * ((32 + 4) * 7 + 2 * 7)


def test_it_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr(head, "head_shape", lambda _: SHAPE)
    assert main(["--what", "head", "--models", "noah_resnet18", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| noah_resnet18, 3x3x32 | floor: 0.00 GFLOP, 0.0 MB |")
    rows = [line.split("|")[2].strip() for line in table[3:]]
    assert [r for r in rows if r != "PyTorch"] == ["linear", "reference", "auto"]
    assert f"jax {jax.__version__}" in out and str(datetime.date.today().year) in out


def test_it_prints_the_heads_that_were_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(head, "head_shape", lambda _: SHAPE)
    arguments = ["--models", "noah_resnet18", "--heads", "xla", "--rounds", "1"]
    assert main(["--what", "head", *arguments]) == 0
    out = capsys.readouterr().out
    assert "| linear |" in out and "| xla |" in out and "| auto |" not in out


def test_kinds_of_heads_are_priced(monkeypatch, capsys):
    monkeypatch.setattr(head, "head_shape", lambda _: SHAPE)
    arguments = ["--models", "noah_resnet18", "--rounds", "1"]
    heads = ["--heads", "noah", "csra,simpool", "auto"]
    assert main(["--what", "head", *arguments, *heads]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    columns, _, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    rows = {row[1]: dict(zip(columns, row, strict=True)) for row in rows if row[1] != "PyTorch"}
    assert list(rows) == ["linear", "noah", "csra", "simpool", "auto"]
    assert rows["linear"]["parameters"] == str(32 * 7 + 7) and rows["csra"]["parameters"] == "224"
    assert rows["noah"]["parameters"] == rows["auto"]["parameters"] == str((32 + 2 * 2) * 7)
    assert rows["csra"]["multiply-adds/M an image"] == f"{9 * 32 * 7 / 1e6:.2f}"
    assert rows["linear"]["with backward over linear"] == "1.00"
    assert all(float(row["forward ms"]) > 0 for row in rows.values())


def test_a_kind_of_head_needs_no_model_with_noah(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(head, "head_shape", lambda model: seen.append(model.name) or SHAPE)
    assert main(["--what", "head", "--models", "resnet18", "--rounds", "1", "--heads", "gem"]) == 0
    assert seen == ["resnet18"] and "| gem |" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5e:1x1", "h100:1"])
def test_the_table_of_a_machine(topology, monkeypatch, capsys):
    on_tpu = topology.startswith("v5e")
    figures = {"linear": 2_000_000, "auto": 2_100_000}

    def gauge(mesh, name, shape, kind, batch, depth):
        cycles = figures.get(kind, 3_000_000)
        parts = [("product", "nn/mlp.py Mlp", 1_900_000), ("move", kind, cycles - 1_900_000)]
        operations = tuple(Operation(kind, place, "", n) for kind, place, n in parts)
        return compiled_steps.StepCost(
            on_tpu * cycles, kind == "auto", 1000 * cycles, 0, operations * on_tpu
        )

    monkeypatch.setattr(head, "topology_mesh", lambda _: "mesh")
    monkeypatch.setattr(compiled_steps, "compile_step", gauge)
    monkeypatch.setattr(compiled_steps, "kernel_cycles", lambda *_: 100_000)
    assert main(["--what", "head", "--topology", topology]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    if on_tpu:
        assert lines[0] == ["linear", "2.00", "+0.0", "%", "2.000", "+0.0", "%"]
        assert lines[1] == ["auto", "(kernel)", "2.20", "+10.0", "%", "2.100", "+5.0", "%"]
    else:  # no cycles
        assert lines[1] == ["auto", "(kernel)", "2.100", "+5.0", "%"]
    assert len(lines) == 4
    assert main(["--what", "head", "--topology", topology, "--heads", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[0] for line in lines] == ["linear", "reference"]
    explain = ["--what", "head", "--topology", topology, "--heads", "auto", "--explain"]
    assert main(explain) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[5:]]
    if on_tpu:
        assert lines[1:] == [
            ["move", "auto", "0.0", "200.0", "+200.0"],
            ["move", "linear", "100.0", "0.0", "-100.0"],
            ["the", "head's", "kernels,", "counted", "0.0", "100.0", "+100.0"],
            ["product", "nn/mlp.py", "Mlp", "1900.0", "1900.0", "+0.0"],
            ["all", "2000.0", "2200.0", "+200.0"],
        ]
    else:
        assert lines == []


def test_explain_needs_a_machine(capsys):
    assert main(["--what", "head", "--explain"]) == 1
    assert "--explain goes with --topology" in capsys.readouterr().err


def test_without_the_compiler_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["--what", "head", "--topology", "v5e:1x1"]) == 1
    assert "pip install libtpu" in capsys.readouterr().err
