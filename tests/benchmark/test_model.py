"""python -m noah_jax.benchmark --what model, on a small model."""

from noah_jax.benchmark import model as benchmark
from noah_jax.benchmark.__main__ import main
from noah_jax.models import create_model
from noah_jax.models.flops import multiply_adds


def test_both_heads_in_one_run(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_SECONDS", 0.0)
    arguments = ["--model", "resnet18", "--batch", "1,2", "--image-size", "32", "--rounds", "2"]
    assert main(["--what", "model", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    noah, linear = (
        create_model("resnet18", head=head, image_size=32) for head in ("noah", "linear")
    )
    assert [f"{noah.num_params / 1e6:.3f}", f"{linear.num_params / 1e6:.3f}"] == next(
        row[1:3] for row in rows if row[0] == "parameters/M"
    )
    ratio = f"{multiply_adds(noah) / multiply_adds(linear):.3f}"
    assert next(row[3] for row in rows if row[0] == "FLOPs/G") == ratio
    assert [row for row in rows if row[0] == "batch"] == [["batch", "1"], ["batch", "2"]]
    temporary = [row for row in rows if row[0] == "temporary/MB"]
    assert len(temporary) == 2 and float(temporary[1][1]) > float(temporary[0][1]) > 0
    assert sum(row[0] == "latency/ms" and float(row[1]) > 0 for row in rows) == 2


def test_mistakes_get_one_line(capsys):
    for arguments, words in (
        ([], "--model"),
        (["--model", "resnet19"], "unknown model 'resnet19'"),
        (["--model", "resnet18", "--batch", "0"], "--batch"),
    ):
        assert main(["--what", "model", *arguments]) == 1
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
