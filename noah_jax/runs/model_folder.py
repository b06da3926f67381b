"""Writes a model's folder that is no training run: its description and one checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from noah_jax.console import working
from noah_jax.files import whole
from noah_jax.runs.checkpoints import save_model
from noah_jax.runs.run_dir import CHECKPOINTS, MODEL_FILE


def write_model_folder(
    target: epath.Path,
    metadata: Mapping[str, Any],
    tree: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `noah_jax.load_model` reads, whole or not at all.

    Args:
      target: The folder, see `noah_jax.runs.destination.free_destination`. In a `gs://` folder,
        `model.json` is written last.
      metadata: The contents of `model.json`: `name`, `arguments`, `preprocessing`, and `source`,
        which says where the weights come from.
      tree: `{"params": ..., "stats": ...}`.
      overwrite: Whether a local folder that is not empty is replaced.

    Raises:
      WriteError: If the folder cannot be written.
    """
    with (
        working(f"writing {target}"),
        whole(target, overwrite=overwrite, last=MODEL_FILE) as folder,
    ):
        folder.mkdir()
        save_model(folder / CHECKPOINTS, tree)
        (folder / MODEL_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
