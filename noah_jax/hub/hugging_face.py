"""Gets the files of a repository of Hugging Face's hub, by `huggingface_hub`.

That library keeps the files, knows the user's token and honours its variables: HF_HOME,
HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN. What is kept is not asked for again, so that a
repository that was used once needs no network; `hf download USER/NAME` brings its newest state.
"""

import hashlib
import os
import posixpath
import re
from types import ModuleType

from noah_jax.console import warn_once, working
from noah_jax.errors import InputError, MissingError, MissingPackageError, ReadError, one_line
from noah_jax.hub.names import HubName

CONFIG = "config.json"
# The weights of a repository, the safer format first. Nothing in either file is ever executed.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MODEL = "model.json"  # A folder of this package that was uploaded as it is.

_LOG_IN = "hf auth login, or HF_TOKEN=..."
_COMMIT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")
_MAX_LISTED = 8


def fetch_repository(name: HubName) -> str:
    """Returns the weights of a repository, beside its `config.json` if it has one.

    Args:
      name: The repository. Without a file, the weights are `model.safetensors`, else
        `pytorch_model.bin`, else a whole folder that this package wrote.

    Returns:
      The path of a file, or of a folder with `model.json`.

    Raises:
      MissingPackageError: If huggingface_hub is not installed.
      MissingError: If there is no such repository, revision or file.
      InputError: If it cannot be reached, or not by this user.
      ReadError: If a file came otherwise than the hub says.
    """
    repository = _Repository(name)
    if name.file is not None:
        path = repository.get(name.file)
        if path is None:
            raise MissingError(
                f"{name}: {repository.address} has no such file{repository.listing()}"
            )
        repository.get(posixpath.join(posixpath.dirname(name.file), CONFIG), needed=False)
        return path
    for file in WEIGHTS:  # what is kept is asked for first, so that it needs no network
        if repository.kept(file) is not None:
            break
    else:
        files = (file for file in WEIGHTS if repository.get(file) is not None)
        file = next(files, "")
    if file:
        repository.get(CONFIG, needed=False)
        path = repository.get(file)
        assert path is not None
        return path
    if repository.get(MODEL) is not None:
        return repository.get_all()
    raise MissingError(
        f"{name} has neither {' nor '.join(WEIGHTS)} nor {MODEL}{repository.listing()}"
        f"; hf://{name.repository}/FILE names a file"
    )


def commit_of(path: str) -> str | None:
    """Returns the commit of a file of a repository on this machine; `None` of any other file."""
    commit = _COMMIT.search(path)
    return None if commit is None else commit[1]


class _Repository:
    """The files of a repository, all of one commit.

    Args:
      name: Its name.
    """

    def __init__(self, name: HubName):
        self._name = name
        self._library = _library(name)
        self._revision = name.revision or "main"
        self.address = f"{name.repository}" + (f"@{name.revision}" if name.revision else "")

    def kept(self, file: str) -> str | None:
        """Returns a file if it is on this machine."""
        found = self._library.try_to_load_from_cache(
            self._name.repository, file, revision=self._revision
        )
        return found if isinstance(found, str) else None

    def get(self, file: str, *, needed: bool = True) -> str | None:
        """Returns a file; `None` if the repository does not have it.

        Args:
          file: Its path in the repository.
          needed: Whether it is an error if nobody may ask for it; otherwise a warning.
        """
        # The library also remembers which files a repository does not have.
        path = self._library.try_to_load_from_cache(
            self._name.repository, file, revision=self._revision
        )
        if path is None:
            path = self._download(file, needed)
        if not isinstance(path, str):
            return None
        # The branch may move before the next file.
        self._revision = commit_of(path) or self._revision
        return path

    def get_all(self) -> str:
        """Returns the folder with all files."""
        with working(f"downloading {self._name}"):
            try:
                return self._library.snapshot_download(
                    self._name.repository, revision=self._revision
                )
            except Exception as error:
                raise self._explained(error, "its files") from error

    def listing(self) -> str:
        """Says which files the repository has, to end a message with; nothing if nobody knows."""
        try:
            files = self._library.list_repo_files(self._name.repository, revision=self._revision)
        except Exception:  # it is only for the message
            return ""
        more = f" and {len(files) - _MAX_LISTED} more" if len(files) > _MAX_LISTED else ""
        return f"; it has {', '.join(sorted(files)[:_MAX_LISTED])}{more}"

    def _download(self, file: str, needed: bool) -> str | None:
        from noah_jax import __version__

        with working(f"downloading {file} of {self._name}"):
            try:
                path = self._library.hf_hub_download(
                    self._name.repository,
                    file,
                    revision=self._revision,
                    library_name="noah_jax",
                    library_version=__version__,
                )
            except self._library.errors.LocalEntryNotFoundError as error:
                if needed or not self._library.constants.HF_HUB_OFFLINE:
                    raise self._explained(error, file) from error
                warn_once(f"{self._name}: {file} is not in the cache, which says more of the model")
                return None
            except self._library.errors.EntryNotFoundError:
                return None
            except Exception as error:  # the library passes on those of the network's libraries
                raise self._explained(error, file) from error
            _verify(path, self._name)
        return path

    def _explained(self, error: Exception, file: str) -> InputError | MissingError:
        """Returns the error for the user, in one line."""
        errors = self._library.errors
        name, status = self._name, getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return InputError(
                f"{name}: access is restricted; ask for it on the repository's page and log in"
                f" ({_LOG_IN})"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return MissingError(
                f"{name}: there is no repository {name.repository}, or it is private; check the"
                f" name or log in ({_LOG_IN})"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return MissingError(
                f"{name}: {name.repository} has no branch, tag or commit {self._revision}"
            )
        if isinstance(error, errors.LocalEntryNotFoundError):
            if self._library.constants.HF_HUB_OFFLINE:
                return MissingError(
                    f"{name}: {file} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
                )
            reason = one_line(error.__cause__ or error, 200)
            return InputError(
                f"{name}: {file} is not in the cache and the hub cannot be reached ({reason}); try"
                " again, or give the path of a file that you have"
            )
        reason = f"the hub answers {status}" if status else one_line(error, 200)
        return InputError(
            f"{name}: {file} cannot be downloaded ({type(error).__name__}: {reason}); try again"
        )


def _library(name: HubName) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise MissingPackageError(
            f"{name} needs huggingface_hub, which is not installed: pip install 'noah-jax[hub]'"
        ) from None
    return huggingface_hub


def _verify(path: str, name: HubName) -> None:
    """Removes a file that was just downloaded and raises, unless it has the hub's checksum.

    The library checks the length alone. A file of the snapshot is a link to `blobs/CHECKSUM`: the
    SHA-256 of a large file, the checksum of a small one by git or, from mirrors, by SHA-1.
    """
    if not os.path.islink(path):
        return  # file systems without links
    blob = os.path.join(os.path.dirname(path), os.readlink(path))
    expected = os.path.basename(blob)
    with open(path, "rb") as file:
        if re.fullmatch("[0-9a-f]{64}", expected):
            actual = {hashlib.file_digest(file, "sha256").hexdigest()}
        elif re.fullmatch("[0-9a-f]{40}", expected):
            data = file.read()
            blobs = (b"blob %d\0" % len(data) + data, data)
            actual = {hashlib.sha1(x, usedforsecurity=False).hexdigest() for x in blobs}
        else:
            return
    if expected not in actual:
        os.unlink(path)
        os.unlink(blob)
        raise ReadError(
            f"{name}: {os.path.basename(path)} came with another checksum than the hub says"
            f" ({sorted(actual)[0]}, expected {expected}); it was removed, try again"
        )
