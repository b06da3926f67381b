"""File names in any bytes, byte order marks, and files that cannot be read."""

import codecs
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from noah_jax.data.batches import eval_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.csv_files import CsvSource
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.folders import FolderSource
from noah_jax.data.transforms import make_eval_transform
from noah_jax.errors import ReadError, one_line, printable, shown
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.evaluation.label_files import _read_table
from noah_jax.explain.__main__ import main as explain
from noah_jax.files import read_text, write_text
from noah_jax.predict.__main__ import main as predict
from tests.helpers import ROOT

NAMES = [b"caf\xe9.png", b"line\nbreak.png", b"<b>&'\".png", "größe.png".encode()]
SHOWN = [r"caf\xe9.png", r"line\nbreak.png", "<b>&'\".png", "größe.png"]


@pytest.fixture
def odd_images(tmp_path) -> str:
    """A folder with four images whose names are no plain text."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.full((28, 28, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(os.fsencode(folder) + b"/" + name, "PNG")
    return str(folder)


def test_names_are_shown_escaped_on_one_line():
    assert [shown(os.fsdecode(name)) for name in NAMES] == SHOWN
    assert printable("a\nb\udce9") == "a\nb\\xe9" and one_line("a\n\udce9") == r"a \xe9"
    # As a locale without UTF-8 reads the name.
    assert shown("größe.png".encode().decode("ascii", "surrogateescape")) == "größe.png"


def test_predict_and_explain_do_everything(odd_images, tiny_run, tmp_path, capsys):
    assert predict([odd_images, "--checkpoint", tiny_run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(any(name in line for line in lines) for name in SHOWN)
    assert predict([odd_images, "--checkpoint", tiny_run, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {os.path.basename(os.fsencode(row["file"])) for row in rows} == set(NAMES)
    output = tmp_path / "explained"
    assert explain(["--checkpoint", tiny_run, "--image", odd_images, "--output", str(output)]) == 0
    page = (output / "index.html").read_text("utf-8")
    assert "caf\\xe9.png" in page and "&lt;b&gt;&amp;" in page and "<b>&" not in page
    capsys.readouterr()


def test_a_locale_without_utf8(odd_images, tiny_run):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-m", "noah_jax.predict", odd_images, "--checkpoint", tiny_run],
        env=os.environ | ascii_only | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 4, ran.stderr
    assert rb"caf\xe9.png" in ran.stdout and rb"gr\xf6\xdfe.png" in ran.stdout


def test_a_report_has_every_class_whatever_it_is_called(tiny_run, class_folders, tmp_path):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", tiny_run, run], check=True)
    description = json.loads((run / "model.json").read_text())
    description["class_names"][1] = "caf\udce9"
    (run / "model.json").write_text(json.dumps(description))
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", f"{class_folders}/val", data], check=True)
    os.rename(data / "bee", os.fsencode(data) + b"/caf\xe9")
    report = tmp_path / "report"
    command = ["--checkpoint", str(run), "--dataset", f"folder:{data}", "--report", str(report)]
    assert evaluate(command) == 0
    assert r"caf\xe9" in (report / "classes.csv").read_text("utf-8")
    assert json.loads((report / "report.json").read_text())


MARKS = {"utf-8-sig": b"", "utf-16": b"", "utf-16-be": codecs.BOM_UTF16_BE, "utf-8": b""}


@pytest.mark.parametrize("encoding", MARKS)
def test_text_files_with_any_byte_order_mark(encoding, tmp_path):
    def save(name, text):
        (tmp_path / name).write_bytes(MARKS[encoding] + text.encode(encoding))
        return tmp_path / name

    assert read_text(save("names.txt", "ä\r\nb\r\n")) == "ä\r\nb\r\n"
    source = CsvSource(epath.Path(save("train.csv", "image,labels\r\na.png,größe;rot\r\n")))
    assert source.class_names == ["größe", "rot"] and len(source) == 1
    table = _read_table(str(save("labels.csv", "file,label\r\nä.png,rot\r\n")), ["blau", "rot"])
    assert table == {"ä.png": 1}


def test_text_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a").write_bytes("file\nä\n".encode("latin-1"))
    with pytest.raises(ReadError, match=r"a is not text in UTF-8 \(line 2: .*\); save it as UTF-8"):
        read_text(tmp_path / "a")
    assert os.fsencode(read_text(tmp_path / "a", any_bytes=True)) == b"file\n\xe4\n"
    (tmp_path / "b").write_bytes("file".encode("utf-16-le"))  # without its mark
    with pytest.raises(ReadError, match="b is not text in UTF-8; save it as UTF-8"):
        read_text(tmp_path / "b")
    with pytest.raises(ReadError, match="c cannot be read: No such file or directory"):
        read_text(tmp_path / "c")
    write_text(tmp_path / "d", "caf\udce9 \ud800")
    assert (tmp_path / "d").read_bytes() == rb"caf\xe9 \ud800"


def _counted(source) -> tuple[int, list[str]]:
    """Returns how many images of a source an evaluation counts, and what it says of the others."""
    said: list[str] = []
    batches = eval_batches(
        DecodedSource(source),
        make_eval_transform((28, 28), resize=None, interpolation="bilinear"),
        batch_size=8,
        num_threads=1,
        put=lambda batch: batch,
        corrupt_images=CorruptImages("replace", said.append),
    )
    return sum(int(batch["mask"].sum()) for batch in batches), said


def test_files_that_cannot_be_read_count_as_corrupt_images(tmp_path):
    folder = tmp_path / "train" / "ant"
    folder.mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    (folder / "broken.png").symlink_to("nothing.png")
    (folder / "album.png").mkdir()
    count, said = _counted(FolderSource(epath.Path(tmp_path / "train")))
    assert count == 1 and len(said) == 1
    assert said[0].endswith("broken.png cannot be read: No such file or directory")

    rows = ["image,labels", "train/ant/a.png,x", "train/ant/album.png,x", "gone.png,x"]
    (tmp_path / "val.csv").write_text("\n".join(rows))
    count, said = _counted(CsvSource(epath.Path(tmp_path / "val.csv")))
    assert count == 1 and len(said) == 2
    assert said[0].endswith("album.png cannot be read: Is a directory")
    assert said[1] == f"corrupt image 2: {tmp_path}/gone.png cannot be read: " + (
        "No such file or directory"
    )
