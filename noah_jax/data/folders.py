"""Class folders, `SPLIT/CLASS/image`, as torchvision's ImageFolder orders them."""

import os
from collections.abc import Sequence

from etils import epath

from noah_jax.data.source import IMAGE_SUFFIXES, ImageFiles
from noah_jax.errors import InputError


class FolderSource(ImageFiles):
    """The images of one split that is stored as class folders, `FOLDER/CLASS/image`.

    Args:
      folder: The split's folder, local or `gs://`.
      class_names: Names of the classes, in the order of their indices; by default the sorted
        names of the class folders.

    Raises:
      InputError: If there are no images, or a class folder that `class_names` lacks.
    """

    multi_label = False

    def __init__(self, folder: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(folder)
        names = folder_names(folder)
        self.class_names = list(class_names or names)
        if unknown := sorted(set(names) - set(self.class_names)):
            raise InputError(
                f"{folder} holds the classes {', '.join(unknown[:5])}, unknown to the training"
                " split; both need the same class folders"
            )
        class_indices = {name: index for index, name in enumerate(self.class_names)}
        self.files = [
            (os.fspath(path), class_indices[name])
            for name in names
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self.files:
            raise InputError(f"{folder} holds no images in class folders (CLASS/image.jpg)")


def folder_names(folder: epath.Path) -> list[str]:
    """Returns the sorted names of the folders in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
