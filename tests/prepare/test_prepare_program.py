"""The program that prepares datasets, run as a user runs it."""

import subprocess
import sys

import pytest

from noah_jax.data.sources import open_sources
from tests.helpers import ROOT

PROGRAM = [sys.executable, "-m", "noah_jax.prepare"]
SCRIPT = [sys.executable, str(ROOT / "scripts" / "prepare_imagenet.py")]


def test_a_full_disk_is_told_and_gone_on_after(class_folders, tmp_path):
    arguments = ["--folder", class_folders, "--name", "my_images"]
    arguments += ["--data-dir", str(tmp_path / "out")]
    limited = ["bash", "-c", 'ulimit -f 20; "$@"', "bash", *PROGRAM, *arguments]
    ran = subprocess.run(limited, capture_output=True, text=True)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: write() failed: File too large")
    assert last.endswith("the same command goes on from here")
    assert not (tmp_path / "out/my_images/1.0.0").exists()
    subprocess.run([*SCRIPT, *arguments], check=True)
    prepared = open_sources("my_images", data_dir=str(tmp_path / "out"))
    for actual, expected in zip(prepared, open_sources(class_folders), strict=True):
        assert actual.class_names == expected.class_names
        assert [actual[i] for i in range(len(actual))] == [
            expected[i] for i in range(len(expected))
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tar", "/none.tar", "/none.tar"], "error: /none.tar cannot be read"),
        (["--folder", "{folders}"], "train holds ant, which is none of ImageNet's 1,000 classes"),
        (["--folder", "/none", "--name", "x"], "/none has no folder train/"),
        (["--from-tfrecord", "/none"], "/none is no dataset that TFDS prepared"),
        (["--folder", "{folders}", "--name", "x", "--data-dir", "gs://b"], "gs://b is no local"),
        (["--tar", "a", "b", "--name", "x"], "--name goes with --folder, --coco or --voc"),
        (["--voc", "a", "--year", "2007"], "--year goes with --coco"),
        (["--coco", "{folders}"], "has no annotations/instances_*.json; it must hold"),
    ],
)
def test_bad_input_is_answered_with_one_line(class_folders, tmp_path, arguments, words):
    command = [*PROGRAM, *(argument.format(folders=class_folders) for argument in arguments)]
    if "--data-dir" not in command:
        command += ["--data-dir", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1 and words in ran.stderr, ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(class_folders, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["--folder", class_folders, "--name", "my_images"]
    ran = subprocess.run(
        [*PROGRAM, *arguments, "--data-dir", str(tmp_path / "file")], capture_output=True, text=True
    )
    assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "cannot be written (Not a directory)" in ran.stderr
