"""Uploads a folder to Hugging Face's hub, in one commit, by `huggingface_hub`.

That library knows the user's token (`hf auth login`, HF_TOKEN) and the hub (HF_ENDPOINT). A commit
is there as a whole or not at all.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from types import ModuleType

from noah_jax.console import working
from noah_jax.errors import InputError, MissingPackageError, one_line
from noah_jax.hub.names import HUGGING_FACE, parse_hub_name

_TOKENS = "https://huggingface.co/settings/tokens"


def check_upload(name: str) -> str:
    """Returns the name of a repository to upload to, before anything is computed for it.

    Args:
      name: `USER/NAME`, with or without `hf://`.

    Raises:
      InputError: If it is no such name, or nobody is logged in.
      MissingPackageError: If huggingface_hub is not installed.
    """
    parsed = parse_hub_name(HUGGING_FACE + name.removeprefix(HUGGING_FACE))
    if parsed.revision is not None or parsed.file is not None:
        raise InputError(f"--push takes USER/NAME, got {name}")
    if _library().get_token() is None:
        raise InputError(
            f"--push {name}: nobody is logged in to Hugging Face; log in by hf auth login, or set"
            f" HF_TOKEN to a token with write access from {_TOKENS}"
        )
    return parsed.repository


def upload_folder(
    folder: str | os.PathLike[str], repository: str, *, message: str, private: bool = False
) -> str:
    """Uploads the files of a folder in one commit; makes the repository if there is none.

    Folders in it are left out. Files of the repository that the folder does not have stay.

    Args:
      folder: A local folder.
      repository: What `check_upload` returns.
      message: The commit's message.
      private: Whether a repository that is made is private; one that is there stays as it is.

    Returns:
      The address of the repository's page.

    Raises:
      InputError: If it cannot be uploaded, in one line. Then no file of it is in the repository.
    """
    library = _library()
    hub = library.HfApi(library_name="noah_jax")
    with working(f"uploading to {repository}"), _quiet(library):
        try:
            url = hub.create_repo(repository, private=private or None, exist_ok=True)
            # `HfApi.upload_folder` may make several commits.
            files = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_file())
            added = [library.CommitOperationAdd(path.name, path) for path in files]
            hub.create_commit(repository, added, commit_message=message)
        except Exception as error:  # the library passes on those of the network's libraries
            raise _explained(error, repository) from error
    return str(url)


@contextlib.contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Keeps the library's bars and the hub's advice on the card off the terminal."""
    shown = not library.utils.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if shown:
            library.utils.disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                library.utils.enable_progress_bars()


def _explained(error: Exception, repository: str) -> InputError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    user = repository.partition("/")[0]
    if status == 401:
        return InputError(
            f"{repository}: the hub does not know the token; log in again (hf auth login), or set"
            f" HF_TOKEN to one from {_TOKENS}"
        )
    if status in (403, 404):
        return InputError(
            f"{repository}: the token may not write there; take one with write access to {user}"
            f" from {_TOKENS}, or push to a name of your own"
        )
    reason = f"the hub answers {status}: " if status else ""
    return InputError(
        f"{repository}: the upload failed ({reason}{one_line(error.__cause__ or error, 200)});"
        " nothing of the folder is in the repository, try again"
    )


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingPackageError(
            "--push needs huggingface_hub, which is not installed: pip install 'noah-jax[hub]'"
        ) from None
    return huggingface_hub
