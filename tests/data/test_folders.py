"""Class folders: what torchvision's ImageFolder reads, and a line about all that is left out."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from noah_jax.data.image_files import find_images
from noah_jax.data.prepare import plan_folders
from noah_jax.data.source import IMAGE_SUFFIXES
from noah_jax.data.sources import open_sources
from noah_jax.errors import InputError

# What torchvision.datasets.folder has.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def _write(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(path, "PNG")


def _image_folder(root: pathlib.Path) -> list[tuple[str, int]]:
    """The samples of torchvision's ImageFolder: `make_dataset` without torchvision."""
    samples = []
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    for index, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
            samples += [
                (os.path.join(folder, file), index)
                for file in sorted(files)
                if file.lower().endswith(IMG_EXTENSIONS)
            ]
    return samples


@pytest.fixture
def root(tmp_path):
    """Class folders with every suffix, subfolders, a link, a folder that looks like an image."""
    for suffix in IMG_EXTENSIONS:
        _write(tmp_path / f"set/train/ant/a{suffix}")
        _write(tmp_path / f"set/train/bee/B{suffix.upper()}")
    for name in ("b/z.png", "b-c/y.png", "b/c/x.png", "album.png/w.png"):
        _write(tmp_path / "set/train/bee" / name)
    _write(tmp_path / "elsewhere/linked.pgm")
    (tmp_path / "set/train/ant/link").symlink_to(tmp_path / "elsewhere")
    _write(tmp_path / "set/val/ant/a.png")
    return tmp_path / "set"


def test_what_imagefolder_reads_in_its_order(root, capsys):
    assert sorted(IMAGE_SUFFIXES) == sorted(IMG_EXTENSIONS)
    train, _ = open_sources(str(root))
    assert train.files == _image_folder(root / "train")
    assert len(train) == 23 and capsys.readouterr().err == ""
    # The other programs find the same images.
    assert sorted(find_images([str(root / "train")])) == sorted(path for path, _ in train.files)
    _, splits = plan_folders(str(root), "my_images")
    assert [split.num_images for split in splits] == [23, 1]


def test_what_is_left_out_is_counted(root, capsys):
    before = open_sources(str(root))[0].files
    for name in ("ant/notes.txt", "bee/b/c/x.gif", "bee/b/x.gif"):
        (root / "train" / name).touch()
    (root / "train/.DS_Store").touch()
    _write(root / "train/outside.png")
    _write(root / "train/ant/._a.png")
    _write(root / "train/.ipynb_checkpoints/a-checkpoint.png")
    _write(root / "train/__MACOSX/ant/._a.png")
    (root / "train/wasp").mkdir()
    for _ in range(2):
        train, _ = open_sources(str(root))
    assert train.files == before and train.class_names == ["ant", "bee", "wasp"]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {root}/train: left out 3 file(s) that are no images by their suffix (.gif 2,"
        " .txt 1) and 3 hidden image(s) or folder(s) (._a.png, .ipynb_checkpoints, __MACOSX)",
        f"warning: {root}/train: left out 1 image(s) outside of the class folders",
        f"warning: {root}/train: 1 class(es) without images: wasp",
    ]
    assert find_images([str(root / "train/ant")]) == [path for path, label in before if label == 0]
    assert "left out 1 file(s) that are no images" in capsys.readouterr().err


@pytest.mark.parametrize("target", [".", "..", "../../../train"])
def test_a_cycle_of_links_is_one_line(root, target):
    (root / "train/bee/b/back").symlink_to(root / "train/bee/b" / target)
    read = {
        "open_sources": lambda: open_sources(str(root)),
        "find_images": lambda: find_images([str(root / "train")]),
        "plan_folders": lambda: plan_folders(str(root), "my_images"),
    }
    for open_folder in read.values():
        with pytest.raises(InputError, match=r"back\S* links back to .*; remove the link"):
            open_folder()


def test_a_folder_that_cannot_be_read_is_one_line(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"folder .*/bee/b cannot be read: Permission denied"):
        open_sources(str(root))
