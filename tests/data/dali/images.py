"""A small source with images of every kind that a loader meets, for the tests of DALI's."""

import io

import numpy as np
from PIL import Image

from tests.helpers import GOLDEN

BATCH = 8
CORRUPT = ("truncated", "nonsense")


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _kinds() -> dict[str, bytes]:
    photograph = Image.open(GOLDEN / "images" / "china.jpg").resize((160, 107))
    plain = _saved(photograph, "JPEG", quality=90)
    return {
        "plain": plain,
        "portrait": _saved(photograph.rotate(90, expand=True), "JPEG", subsampling=0),
        "progressive": _saved(photograph, "JPEG", progressive=True),
        "grey": _saved(photograph.convert("L"), "JPEG"),
        "cmyk": _saved(photograph.convert("CMYK"), "JPEG"),
        "truncated": plain[: len(plain) // 2],
        "png": _saved(photograph, "PNG"),
        "palette": _saved(photograph.convert("P"), "PNG"),
        "bytes behind the end": plain + b"\0",
        "nonsense": b"nonsense",
        "tiny": _saved(Image.new("RGB", (3, 2), (200, 100, 50)), "JPEG"),
    }


class Source:
    """One image of each kind; its class index is its index, or it has several labels."""

    name = "images of every kind"

    def __init__(self, *, multi_label: bool = False):
        self.kinds = _kinds()
        self.multi_label = multi_label
        self.class_names = list(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int):
        label = np.eye(len(self), dtype=np.int8)[index] if self.multi_label else index
        return list(self.kinds.values())[index], label

    def describe(self, index: int) -> str:
        return f"image {list(self.kinds)[index]}"
