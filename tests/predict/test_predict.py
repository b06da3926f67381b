"""Runs python -m noah_jax.predict on a tiny run."""

import io
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax import load_model
from noah_jax.inference.description import imagenet_classes
from noah_jax.predict.__main__ import main


@pytest.fixture
def images(class_folders) -> str:
    return f"{class_folders}/val"


def test_json_lines(tiny_run, images, capsys):
    assert main([images, "--checkpoint", tiny_run, "--json", "--batch", "4", "--top", "2"]) == 0
    out = capsys.readouterr()
    rows = [json.loads(line) for line in out.out.splitlines()]
    assert [row["file"] for row in rows] == sorted(map(str, pathlib.Path(images).glob("*/*")))
    model, params, stats = load_model(tiny_run)
    apply = jax.jit(model.apply, static_argnames="train")
    for row in (rows[0], rows[-1]):
        pixels = np.asarray(Image.open(row["file"]), np.float32)[None] / 255
        pixels = (pixels - np.array(model.mean)) / np.array(model.std)
        logits = np.asarray(apply(params, stats, pixels, train=False)[0])[0]
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)[:2]
        assert [x["class"] for x in row["classes"]] == order.tolist()
        assert [x["name"] for x in row["classes"]] == [("ant", "bee", "cat")[i] for i in order]
        actual = [x["probability"] for x in row["classes"]]
        assert actual == pytest.approx(probabilities[order], rel=1e-4)
    # Nothing else is on stderr where that is no terminal.
    assert out.err.startswith(f"{tiny_run}: mean ") and out.err.count("\n") == 1


def test_a_table_of_paths_on_stdin(tiny_run, images, capsys, monkeypatch):
    paths = [f"{images}/bee/01.png", f"{images}/ant/00.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths) + "\n"))
    assert main(["-", "--checkpoint", f"{tiny_run}/checkpoints/6"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == paths
    assert all(row.count("%") == 3 for row in rows)  # of five all there are
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["-", "--checkpoint", tiny_run]) == 1
    assert capsys.readouterr().err == "error: there are no paths on stdin\n"


def test_corrupt_images_are_named_and_skipped(tiny_run, images, tmp_path, capsys):
    corrupt, missing = tmp_path / "corrupt.png", tmp_path / "missing.png"
    corrupt.write_bytes((pathlib.Path(images) / "ant/00.png").read_bytes()[:100])
    paths = [f"{images}/ant/00.png", str(corrupt), str(missing), f"{images}/cat/00.png"]
    assert main([*paths, "--checkpoint", tiny_run, "--json"]) == 1
    out = capsys.readouterr()
    assert [json.loads(line)["file"] for line in out.out.splitlines()] == [paths[0], paths[3]]
    assert str(corrupt) in out.err and f"{missing} cannot be read: No such file" in out.err
    assert out.err.splitlines()[-1] == "warning: 2 of 4 images could not be read, see above"


def test_names_of_a_file(tiny_run, images, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("Ameise\nBiene\nKatze\n")
    arguments = [f"{images}/ant/00.png", "--checkpoint", tiny_run, "--class-names", str(names)]
    assert main(arguments) == 0
    assert "Biene" in capsys.readouterr().out
    names.write_text("Ameise\n")
    assert main(arguments) == 1
    assert "has 1 names" in capsys.readouterr().err


def test_one_line_for_what_does_not_fit(tiny_run, images, tmp_path, capsys):
    for arguments, words in (
        ([images, "--checkpoint", str(tmp_path / "none")], "holds no model.json"),
        ([images, "--checkpoint", f"{tiny_run}/checkpoints"], "name one of them"),
        ([str(tmp_path), "--checkpoint", tiny_run], "holds no images"),
        (
            [f"{images}/ent", "--checkpoint", "none"],
            f"or folder; did you mean {images}/ant?",
        ),
        (
            ["/none/a", "--checkpoint", "none"],
            "/none/a: no such file or folder; there is no",
        ),
        ([images, "--checkpoint", images], "no trained model; it holds ant, bee, cat"),
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_imagenet_has_names():
    names = imagenet_classes()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert (
        list(names.values())[:2] == ["tench", "goldfish"] and names["n15075141"] == "toilet tissue"
    )


def test_a_checkpoint_by_a_relative_path(tiny_run, images, capsys, monkeypatch):
    run = pathlib.Path(tiny_run)
    monkeypatch.chdir(run.parent)
    for path in (run.name, f"{run.name}/checkpoints/6"):
        assert main([f"{images}/ant/00.png", "--checkpoint", path]) == 0
        assert capsys.readouterr().err.count("\n") == 1
