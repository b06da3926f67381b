"""Reads the table of the models that the authors published."""

import dataclasses
import functools
import importlib.resources
import json


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the tables in the original's README files.

    Attributes:
      params_millions: Number of parameters in millions. In some rows it is not the number that
        the released code gives.
      top1: ImageNet-1k validation accuracy in percent.
      google_drive_id: Google Drive's id of the released PyTorch checkpoint.
    """

    params_millions: float
    top1: float
    google_drive_id: str


@functools.cache
def published() -> dict[str, Published]:
    """Returns the published models by their names, with and without `noah_`."""
    text = importlib.resources.files(__package__).joinpath("released.json").read_text()
    fields = [field.name for field in dataclasses.fields(Published)]
    return {
        row["name"]: Published(**{field: row[field] for field in fields})
        for row in json.loads(text)
    }
