"""Runs python -m noah_jax.evaluate on a tiny run."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax import load_model
from noah_jax.data.sources import open_eval_source
from noah_jax.evaluate.__main__ import main
from noah_jax.evaluation.label_files import read_real_labels
from tests.helpers import ROOT

CLASSES = ("ant", "bee", "cat")


def _evaluate(capsys, *arguments) -> list[dict]:
    assert main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def logits(tiny_run, class_folders) -> np.ndarray:
    """The logits of the images in `val/`, in order."""
    return _logits(tiny_run, class_folders)


def _logits(tiny_run, class_folders):
    model, params, stats = load_model(tiny_run)
    files = [f"{class_folders}/val/{name}/{i:02}.png" for name in CLASSES for i in range(7)]
    images = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    images = (images - np.array(model.mean)) / np.array(model.std)
    return np.asarray(model.apply(params, stats, images.astype(np.float32), train=False)[0])


def test_it_is_the_training_own_evaluation(tiny_run, capsys):
    results = json.loads((pathlib.Path(tiny_run) / "results.json").read_text())
    # A batch that does not divide the 21 images; the training has batches of 8.
    for ema, prefix in (([], ""), (["--ema"], "ema_")):
        (row,) = _evaluate(capsys, "--checkpoint", tiny_run, "--batch", 5, *ema)
        assert (row["examples"], row["step"]) == (21, results["step"])
        for key in ("top1", "top5"):
            assert row[key] == pytest.approx(results[prefix + key], abs=1e-9)
        assert row["loss"] == pytest.approx(results[prefix + "loss"], rel=1e-5)


def test_a_folder_of_several_says_what_is_left_out(tiny_run, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run, runs / "a")
    (runs / "a" / "config.json").unlink()  # as converted weights
    (runs / "b").symlink_to(tiny_run)
    assert main(["--checkpoint", str(runs)]) == 1
    said = capsys.readouterr()
    assert f"{runs}/b" in said.out and f"{runs}/a " not in said.out
    assert f"warning: {runs}/a is left out: " in said.err and "--dataset is needed" in said.err
    assert "error: 1 of 2 checkpoints are left out, see above" in said.err
    (runs / "c").mkdir()
    assert main(["--checkpoint", str(runs / "c")]) == 1
    assert f"{runs}/c holds no model.json" in capsys.readouterr().err


def test_checkpoints_in_one_table(tiny_run, capsys):
    assert main(["--checkpoint", f"{tiny_run}/checkpoints", tiny_run]) == 0
    out = capsys.readouterr()
    head, *rows = (line.split() for line in out.out.splitlines())
    # The top-5 of three classes is always 100 % and says nothing.
    assert head == ["checkpoint", "step", "top-1", "loss", "images"]
    assert [row[1] for row in rows] == ["6", "12", "12"] and rows[1][2:] == rows[2][2:]
    metrics = (pathlib.Path(tiny_run) / "metrics.jsonl").read_text().splitlines()
    at6 = next(m for m in map(json.loads, metrics) if (m["step"], m["split"]) == (6, "eval"))
    assert rows[0][3] == f"{at6['loss']:.4f}" != rows[1][3]
    # All have the same preprocessing, and nothing else is on stderr where that is no terminal.
    assert out.err.count("\n") == 1 and "interpolation bilinear (run)" in out.err
    assert main(["--checkpoint", f"{tiny_run}/checkpoints/7"]) == 1
    assert "no checkpoint of step 7; it has 6, 12" in capsys.readouterr().err


def test_report(tiny_run, class_folders, tmp_path, capsys, logits):
    _evaluate(capsys, "--checkpoint", tiny_run, "--report", tmp_path / "report")
    report = json.loads((tmp_path / "report/report.json").read_text())
    expected = np.zeros((3, 3), int)
    for label, predicted in zip(np.repeat(range(3), 7), logits.argmax(-1), strict=True):
        expected[label, predicted] += 1
    assert report["confusion"] == expected.tolist()
    assert [row["top1"] for row in report["classes"]] == pytest.approx(
        100 * expected.diagonal() / 7, abs=1e-9
    )
    with open(tmp_path / "report/classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(CLASSES) and rows[0]["images"] == "7"
    with open(tmp_path / "report/confusion.csv") as file:
        assert [list(map(int, row[1:])) for row in list(csv.reader(file))[1:]] == expected.tolist()
    with Image.open(tmp_path / "report/confusion.png") as picture:
        assert min(picture.size) > 200


def test_what_cannot_be_written_is_one_line(tiny_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--checkpoint", tiny_run, "--report", str(tmp_path / "file/report")]) == 1
    _, *said = capsys.readouterr().err.splitlines()  # the first says how images are prepared
    assert len(said) == 1 and "file/report cannot be written" in said[0]


def test_labels_of_a_table(tiny_run, class_folders, tmp_path, capsys, logits):
    first = logits.argmax(-1)
    table = tmp_path / "labels.csv"
    lines = [f"val/{CLASSES[i // 7]}/{i % 7:02}.png,{CLASSES[first[i]]}" for i in (0, 8, 20)]
    wrong = f"val/ant/01.png,{(first[1] + 1) % 3}"
    table.write_text("\n".join(["file,label", *lines, wrong]))
    (row,) = _evaluate(capsys, "--checkpoint", tiny_run, "--labels", table)
    assert (row["top1"], row["examples"]) == (75.0, 4)
    for text, words in (
        ("none.png,ant\n", "none.png"),
        ("val/ant/00.png,dog\n", "'dog', the label of val/ant/00.png"),
        ("", "holds no lines"),
    ):
        table.write_text(text)
        assert main(["--checkpoint", tiny_run, "--labels", str(table)]) == 1
        assert words in capsys.readouterr().err


def test_real_labels(tiny_run, class_folders, tmp_path, capsys):
    # A folder whose file names have another order than its classes.
    folder = tmp_path / "data/val"
    for i, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for j in range(2):
            source = pathlib.Path(class_folders) / "val" / name / f"{j:02}.png"
            (folder / name / f"{'cba'[i]}{j}.png").write_bytes(source.read_bytes())
    first = _logits(tiny_run, class_folders).argmax(-1)[[14, 15, 7, 8, 0, 1]]  # as a0, a1, b0, ...
    sets = [[int(k)] for k in first]
    sets[1] = []  # left out
    sets[2] = [(sets[2][0] + 1) % 3, sets[2][0]]  # one of two is enough
    sets[3] = [(sets[3][0] + 1) % 3]
    real = tmp_path / "real.json"
    real.write_text(json.dumps(sets))
    arguments = ["--checkpoint", tiny_run, "--dataset", f"folder:{tmp_path / 'data'}"]
    (row,) = _evaluate(capsys, *arguments, "--real-labels", real)
    assert (row["real_top1"], row["real_examples"], row["examples"]) == (80.0, 5, 6)
    source = open_eval_source(str(tmp_path / "data"))
    labels = read_real_labels(source, str(real), 3)
    assert labels is not None and labels[4] == sets[0]  # cat/a0.png
    real.write_text(json.dumps(sets[:-1]))
    assert main([*arguments, "--real-labels", str(real)]) == 1
    assert "has 5 images" in capsys.readouterr().err


def test_another_dataset_has_other_classes(tiny_run, tmp_path, capsys):
    (tmp_path / "val/dog").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(tmp_path / "val/dog/0.png")
    assert main(["--checkpoint", tiny_run, "--dataset", f"folder:{tmp_path}"]) == 1
    assert "dog" in capsys.readouterr().err
    assert main(["--checkpoint", tiny_run, "--dataset", "fashion_mnist_sample"]) == 1
    assert "has 10 classes" in capsys.readouterr().err


def test_damaged_images_are_named_and_left_out(tiny_run, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 40)).save(tmp_path / name / "0.png")
    (tmp_path / "ant/1.png").write_bytes(b"damaged")
    assert main(["--checkpoint", tiny_run, "--dataset", f"folder:{tmp_path}", "--json"]) == 0
    out = capsys.readouterr()
    row = json.loads(out.out)
    assert (row["examples"], row["damaged"]) == (3, 1) and "ant/1.png" in out.err


def test_as_a_user_without_tensorflow_on_several_devices(tiny_run, tmp_path, logits):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{tmp_path}:{ROOT}:{':'.join(p for p in sys.path if p)}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "noah_jax.evaluate", "--checkpoint", tiny_run, "--json"]
    # Two images a device, and three of the last batch are padding.
    command += ["--batch", "8", "--calibration", "--predictions", "predictions.csv"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    results = json.loads((pathlib.Path(tiny_run) / "results.json").read_text())
    row = json.loads(ran.stdout)
    assert row["top1"] == pytest.approx(results["top1"], abs=1e-9)
    assert row["loss"] == pytest.approx(results["loss"], rel=1e-5)
    assert row["calibration"]["nll"] == pytest.approx(row["loss"], rel=1e-5)
    with open(tmp_path / "predictions.csv") as file:
        lines = list(csv.DictReader(file))
    assert [x["predicted"] for x in lines] == [CLASSES[k] for k in logits.argmax(-1)]
    best = jax.nn.softmax(logits).max(-1)
    assert [float(x["probability"]) for x in lines] == pytest.approx(best.tolist(), rel=1e-4)
    # On a busy machine lines say what takes long, such as "compiling noah_resnet18 ... 0:05".
    said = [line for line in ran.stderr.splitlines() if " ... " not in line]
    assert jax.default_backend() != "cpu" or len(said) == 1
