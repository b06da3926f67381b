"""What the authors published of their trained models."""

import dataclasses
import functools
import importlib.resources
import json


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the tables of the original's README files.

    Attributes:
      top1: ImageNet-1k validation accuracy in percent.
      google_drive_id: of the released PyTorch checkpoint.
    """

    top1: float
    google_drive_id: str


@functools.cache
def published() -> dict[str, Published]:
    """The published models by name, with and without `noah_`."""
    text = importlib.resources.files(__package__).joinpath("released.json").read_text()
    return {row["name"]: Published(row["top1"], row["google_drive_id"]) for row in json.loads(text)}
