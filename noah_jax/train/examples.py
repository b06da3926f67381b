"""Copies some evaluation images into a run's folder, for trying the trained model on."""

import os
import re

from etils import epath

from noah_jax.data.source import Source
from noah_jax.errors import InputError
from noah_jax.files import make_folder, write_bytes

EXAMPLES = "examples"
_COUNT = 8
# How files of these formats start. Pillow knows a format by its contents too, so the name of any
# other file may be wrong.
_SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}


def write_examples(folder: epath.Path, source: Source) -> None:
    """Copies up to eight images, at even distances, to `FOLDER/CLASS/IMAGE`.

    Images with several labels have no class folder. What cannot be read is left out.

    Args:
      folder: The folder to write into.
      source: The evaluation images.

    Raises:
      WriteError: If the folder cannot be written.
    """
    count = min(_COUNT, len(source))
    for number in range(count):
        index = (2 * number + 1) * len(source) // (2 * count)
        try:
            data, label = source[index]
        except InputError:
            continue
        parent = folder
        if not source.multi_label:
            parent /= _file_name(source.class_names[int(label)])
        make_folder(parent)
        write_bytes(parent / _image_name(source, index, data), data)


def _image_name(source: Source, index: int, data: bytes) -> str:
    suffix = next((s for start, s in _SIGNATURES.items() if data.startswith(start)), ".jpg")
    try:
        stem = os.path.splitext(source.file_name(index))[0]
    except InputError:  # The source does not know it.
        return f"{index:06}{suffix}"
    return f"{index:06}_{_file_name(stem)}{suffix}"  # Two folders may have the same names.


def _file_name(text: str) -> str:
    """Returns a text as the name of a file or folder."""
    return re.sub(r"[/\\\0]", "_", text).strip(".") or "_"
