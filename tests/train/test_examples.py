"""Tests the evaluation images that a run's folder gets to try its model on."""

from etils import epath
from PIL import Image

from noah_jax.data.sources import open_eval_source, open_sources
from noah_jax.errors import CorruptImageError
from noah_jax.train.examples import write_examples


def _examples(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_examples_lie_in_folders_of_their_classes(tmp_path):
    source = open_eval_source("fashion_mnist_sample")
    write_examples(epath.Path(tmp_path), source)
    found = _examples(tmp_path)
    assert len(found) == 8 and len(set(found)) == 8
    for name in found:
        folder, file = name.split("/")
        index = int(file.removesuffix(".png"))
        data, label = source[index]
        assert (tmp_path / name).read_bytes() == data
        assert folder == source.class_names[label].replace("/", "_")
    # They are class folders themselves.
    assert len(open_eval_source(str(tmp_path))) == 8


def test_the_format_is_that_of_the_bytes_and_corrupt_images_are_left_out(tmp_path):
    class Source:
        name, class_names, multi_label = "three images", ["../evil"], False

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 1:
                raise CorruptImageError("1", "gone")
            path = tmp_path / "image"
            Image.new("RGB", (2, 2)).save(path, "JPEG" if index else "PNG")
            return path.read_bytes(), 0

        def describe(self, index):
            return str(index)

        def file_name(self, index):
            return f"photo{index}.tif"

    write_examples(epath.Path(tmp_path / "examples"), Source())
    assert _examples(tmp_path / "examples") == [
        "_evil/000000_photo0.png",
        "_evil/000002_photo2.jpg",
    ]


def test_images_with_several_labels_have_no_class_folders(csv_folder, tmp_path):
    _, evaluation = open_sources(f"csv:{csv_folder}")
    write_examples(epath.Path(tmp_path), evaluation)
    assert len(list(tmp_path.glob("*.png"))) == 8
