"""Class folders, `SPLIT/CLASS/image`, as torchvision's ImageFolder reads and orders them."""

import os
from collections.abc import Sequence

from etils import epath

from noah_jax.data.folder_walk import LeftOut, first_names, list_folder, walk_images, warn_once
from noah_jax.data.source import ImageFiles
from noah_jax.errors import InputError


class FolderSource(ImageFiles):
    """The images of one split that is stored as class folders, `FOLDER/CLASS/image`.

    A class folder may have subfolders. Warnings say what is left out, see
    `noah_jax.data.folder_walk`, and name the classes without images.

    Args:
      folder: The split's folder, local or `gs://`.
      class_names: Names of the classes, in the order of their indices; by default the sorted
        names of the class folders.

    Raises:
      InputError: If there are no images, a class folder that `class_names` lacks, or a linked
        folder that leads back to one above it.
      ReadError: If a folder cannot be read.
    """

    multi_label = False

    def __init__(self, folder: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(folder)
        left_out = LeftOut()
        names, outside = list_folder(self.name, left_out)
        self.class_names = list(class_names or names)
        if unknown := sorted(set(names) - set(self.class_names)):
            raise InputError(
                f"{folder} holds the classes {', '.join(unknown[:5])}, unknown to the training"
                " split; both need the same class folders"
            )
        # torchvision sorts folders by their whole paths, and then the files of each by name.
        paths = {
            name: sorted(walk_images(os.path.join(self.name, name), left_out), key=os.path.split)
            for name in names
        }
        class_indices = {name: index for index, name in enumerate(self.class_names)}
        self.files = [(path, class_indices[name]) for name in names for path in paths[name]]
        if not self.files:
            raise InputError(f"{folder} holds no images in class folders (CLASS/image.jpg)")
        left_out.tell(self.name)
        if outside:
            warn_once(f"{folder}: left out {len(outside):,} image(s) outside of the class folders")
        if empty := [name for name in names if not paths[name]]:
            warn_once(f"{folder}: {len(empty)} class(es) without images: {first_names(empty)}")


def folder_names(folder: epath.Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, without hidden ones."""
    return list_folder(os.fspath(folder), LeftOut())[0]
