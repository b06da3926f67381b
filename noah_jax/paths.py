"""Reads paths as a user writes them; imports nothing heavy."""

import argparse
import os


def expand_home(path: str) -> str:
    """Replaces a leading `~` or `~NAME` by that user's home folder, as a shell does.

    A shell leaves `--workdir=~/run` and `folder:~/photos` alone, so this package expands them:
    every path of a command line, a configuration or a list of files goes through here. Like a
    shell it leaves a path alone if there is no such user.
    """
    return os.path.expanduser(path)


def local_path(text: str) -> str:
    """Parses a path, local or `gs://`, for `add_argument(type=local_path)`.

    Raises:
      argparse.ArgumentTypeError: If it is empty, or starts with `~` and the name of nobody.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    path = expand_home(text)
    if path.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0].removeprefix("~")
        raise argparse.ArgumentTypeError(
            f"there is no user {user!r}, whose folder {text} would be; ./{text} starts with a ~"
        )
    return path
