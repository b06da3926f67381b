"""Training, evaluation and prediction with several labels, end to end."""

import csv
import json
import pathlib

import jax
import numpy as np
import pytest

from noah_jax import load_model
from noah_jax.data.decoding import decode
from noah_jax.data.sources import open_sources
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.explain.explanation import Explainer
from noah_jax.export.card import model_card
from noah_jax.inference.trained import load_one
from noah_jax.models.images import normalise
from noah_jax.predict.__main__ import main as predict
from noah_jax.tasks.multi_label import average_precision, measure


def test_training_end_to_end(multi_label_run, csv_folder):
    results = json.loads((pathlib.Path(multi_label_run) / "results.json").read_text())
    # Each half of an image shows one of the labels; guesses have a mAP of about 50 %.
    assert results["map"] > 95 and results["examples"] == 50
    assert {"map_voc", "map_voc07", "cf1", "of1", "ema_map"} <= results.keys()
    assert "top1" not in results

    # The results are those of the loaded weights, image by image.
    logits, labels = _logits(multi_label_run, csv_folder)
    expected = measure(logits, labels)
    for key in ("map", "map_voc", "cf1", "of1"):
        assert results[key] == pytest.approx(expected[key], abs=1e-3)


def _logits(run, csv_folder):
    """Computes the logits of the evaluation images; returns them with the labels."""
    model, params, stats = load_model(run)
    _, source = open_sources(f"csv:{csv_folder}")
    pixels = np.stack([decode(source[i][0]) for i in range(50)])
    images = normalise(pixels, model.mean, model.std)
    apply = jax.jit(model.apply, static_argnames="train")
    logits = np.asarray(apply(params, stats, images, train=False)[0])
    return logits, np.stack([source[i][1] for i in range(50)])


def _evaluate(capsys, *arguments):
    assert evaluate([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluation_gives_the_results_of_the_training(
    multi_label_run, csv_folder, tmp_path, capsys
):
    results = json.loads((pathlib.Path(multi_label_run) / "results.json").read_text())
    keys = ("map", "map_voc", "map_voc07", "cp", "cr", "cf1", "op", "or", "of1", "loss")
    for ema, prefix in (([], ""), (["--ema"], "ema_")):
        # A batch that does not divide the 50 images; the training has batches of 8.
        actual = _evaluate(capsys, "--checkpoint", multi_label_run, "--batch", 7, *ema)
        assert actual["examples"] == 50 and "top1" not in actual
        for key in keys:
            assert actual[key] == pytest.approx(results[prefix + key], rel=1e-5), key
    # Another dataset with the same classes.
    (tmp_path / "val.csv").write_text(
        "image,labels\n" + "".join(f"{csv_folder}/val{i}.png,red\n" for i in range(5))
    )
    actual = _evaluate(capsys, "--checkpoint", multi_label_run, "--dataset", f"csv:{tmp_path}")
    assert actual["examples"] == 5 and actual["map"] == 100  # no image is green


def test_report_has_average_precisions(multi_label_run, csv_folder, tmp_path, capsys):
    logits, labels = _logits(multi_label_run, csv_folder)
    printed = _evaluate(capsys, "--checkpoint", multi_label_run, "--report", tmp_path / "report")
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["classes.csv", "report.json"]
    report = json.loads((tmp_path / "report/report.json").read_text())
    rows = report.pop("classes")
    assert report == printed
    for i, (row, name) in enumerate(zip(rows, ("green", "red"), strict=True)):
        assert (row["name"], row["ignored"]) == (name, int(name == "green"))
        assert row["images"] == (labels[:, i] == 1).sum()
        expected = 100 * average_precision(logits[:, i], labels[:, i])["exact"]
        assert row["average_precision"] == pytest.approx(expected, abs=1e-3)
    with open(tmp_path / "report/classes.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(x["average_precision"]) for x in lines] == [x["average_precision"] for x in rows]


def test_both_tasks_in_one_table(multi_label_run, tiny_run, capsys):
    assert evaluate(["--checkpoint", multi_label_run, multi_label_run, tiny_run]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = ["CP", "CR", "CF1", "OP", "OR", "OF1"]
    assert rows[0][2:] == ["mAP", "mAP-VOC", "mAP-VOC07", *scores, "loss", "images"]
    assert rows[1] == rows[2] and rows[3][2:] == ["top-1", "loss", "images"]
    results = json.loads((pathlib.Path(multi_label_run) / "results.json").read_text())
    assert rows[1][2:4] == [f"{results['map']:.2f}%", f"{results['map_voc']:.2f}%"]


def test_models_and_datasets_of_different_tasks(
    multi_label_run, tiny_run, csv_folder, class_folders, tmp_path, capsys
):
    (tmp_path / "val.csv").write_text(f"image,labels\n{csv_folder}/val1.png,ant;bee;cat\n")
    for arguments, words in (
        (
            [tiny_run, "--dataset", f"csv:{tmp_path}"],
            "has several labels an image, and * was not trained for that",
        ),
        (
            [multi_label_run, "--dataset", "fashion_mnist_sample"],
            "has one label for each image, and * was trained for several",
        ),
        ([multi_label_run, "--labels", "x.csv"], "* was trained for several"),
    ):
        assert evaluate(["--checkpoint", *arguments]) == 1
        out = capsys.readouterr()
        assert words.replace("*", arguments[0]) in out.err
        assert out.out == "" and out.err.count("\n") == 1


def test_predictions_have_a_probability_of_their_own(multi_label_run, csv_folder, capsys):
    logits, _ = _logits(multi_label_run, csv_folder)
    paths = [f"{csv_folder}/val{i}.png" for i in range(50)]
    assert predict([*paths, "--checkpoint", multi_label_run, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = 1 / (1 + np.exp(-logits))
    for row, own in zip(rows, expected, strict=True):
        assert [x["class"] for x in row["classes"]] == np.argsort(-own).tolist()
        for predicted in row["classes"]:
            assert predicted["probability"] == pytest.approx(own[predicted["class"]], rel=1e-4)
    assert expected.sum(1).max() > 1.2  # images with both


def test_the_explained_probability_is_its_own_too(multi_label_run, csv_folder):
    trained = load_one(multi_label_run)
    explainer = Explainer(trained, trained.display_names())
    path = pathlib.Path(csv_folder) / "val1.png"
    pixels = explainer.pixels(path.read_bytes(), str(path))
    logits = explainer.logits(pixels)
    classes = explainer.explain(pixels, logits, [0, 1]).classes
    assert [x.probability for x in classes] == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-5)


def test_the_card_of_an_exported_model(multi_label_run):
    facts = {"arguments": {}, "platforms": [], "jax_version": "", "difference_from_the_model": 0.0}
    results = json.loads((pathlib.Path(multi_label_run) / "results.json").read_text())
    card = model_card(load_one(multi_label_run), facts)
    assert (
        f"| mAP | CF1 | OF1 | loss | images |\n|---|---|---|---|---|\n| {results['map']:.2f}"
        in card
    )
