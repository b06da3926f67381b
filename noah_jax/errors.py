"""Defines the errors that a user can mend.

The programs print a `NoahError` as one line and exit with a non-zero code; any other exception is
a bug of this package and shows its traceback. `NOAH_TRACEBACK=1` in the environment shows the
traceback of a `NoahError` too.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable

# How Python's text holds bytes of a file's name that are no text in the locale.
_FILE_NAME_BYTES = re.compile("[\\udc80-\\udcff]+")
# How the line of a traceback begins that names the exception.
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Exit)\b")


class NoahError(Exception):
    """Base class of the errors that a user can mend; the message is one line for the user."""


class UsageError(NoahError):
    """Raised if the command line does not fit the program."""


class InputError(NoahError, ValueError):
    """Raised if an argument, a configuration value or a file does not fit.

    It is a `ValueError` too, as Python code expects of a wrong argument.
    """


class MissingError(NoahError, FileNotFoundError):
    """Raised if a file or folder that the user named is not there."""


class CorruptImageError(InputError):
    """Raised if an image cannot be decoded.

    Attributes:
      name: The image's path, or its index in its dataset.
      reason: What is wrong with it.
    """

    _failed = "decoded"

    def __init__(self, name: str, reason: str):
        # An exception that comes from another process is made anew from these arguments.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.name)} cannot be {self._failed}: {self.reason}"


class UnreadableImageError(CorruptImageError):
    """Raised if an image's file cannot be read, such as a link that leads nowhere."""

    _failed = "read"


class UnlabelledImageError(CorruptImageError):
    """Raised if an image's label is none of the classes; TFDS has -1 where there is no label."""

    def __str__(self) -> str:
        return f"{self.name} has no label: {self.reason}"


class MissingPackageError(NoahError, ModuleNotFoundError):
    """Raised if a package is not installed; the message names the extra that brings it."""


class ReadError(InputError):
    """Raised if a file cannot be read; says what was found, what was expected and what to do."""


class UnreachableError(ReadError):
    """Raised if a bucket does not give a file; a later try may succeed."""


class WriteError(NoahError, OSError):
    """Raised if a file or folder cannot be written; says which one, why and what to do."""


class ConversionError(InputError):
    """Raised if a state dict is not the model's; the message lists the first problems."""


class CheckpointError(NoahError):
    """Raised if no checkpoint of a run can be used."""


class CompileError(NoahError):
    """Raised if XLA cannot compile a program for a device, or the device lacks the memory."""


class LoaderError(NoahError):
    """Raised if DALI cannot decode images, for a reason that lies not in an image."""


class NonFiniteError(NoahError):
    """Raised if a loss or a weight is not finite."""


class JoinError(NoahError):
    """Raised if the other processes of a run cannot be reached; a later try may succeed."""


# What a disk, a file system or a limit of the machine refuses, and what helps.
_MACHINE_ADVICE = {
    errno.ENOSPC: "free space on the disk or choose another place",
    errno.EDQUOT: "free space in your quota or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another place",
    errno.EACCES: "choose a place that you may read and write, or change its permissions",
    errno.EPERM: "choose a place that you may read and write, or change its permissions",
    errno.EROFS: "it is mounted to be read only: choose another place",
    errno.ENOTDIR: "a part of this path is a file: choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead round in a circle: choose another path",
    errno.EIO: "the disk fails or is gone: look at the machine's log",
    errno.ENODEV: "the disk is gone: look at the machine's log",
    errno.ENXIO: "the disk is gone: look at the machine's log",
    errno.ESTALE: "the network's disk is gone: mount it again",
    errno.ENOTCONN: "the network's disk is gone: mount it again",
    errno.EHOSTDOWN: "the network's disk cannot be reached: try again",
    errno.ETIMEDOUT: "the network's disk cannot be reached: try again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some",
}
# TensorStore, with which Orbax writes, puts the number into its text.
_OS_ERROR = re.compile(r"(?:os_error_code='|\[OS error |\[Errno )(\d+)")
# How `noah_jax.files` calls what is not finished.
_UNFINISHED = re.compile(r"\.([^/]+)\.(?:partial|replaced)-\d+")


def machine_error(error: BaseException | None) -> NoahError | None:
    """Explains an error that the machine causes, such as a full disk, whoever ran into it.

    Args:
      error: Any error; those that it was raised from are looked at too.

    Returns:
      The error for the user, or `None` if it is another kind of error.
    """
    if error is None or isinstance(error, NoahError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1])
    if number not in _MACHINE_ADVICE:
        return machine_error(error.__cause__ or error.__context__)
    name = getattr(error, "filename", None)
    where = f"{finished_name(name)}: " if isinstance(name, str | bytes | os.PathLike) else ""
    return WriteError(f"{where}{os.strerror(number)}; {_MACHINE_ADVICE[number]}")


def machine_advice(number: int | None) -> str:
    """Returns what helps against an error of the operating system that kept a file unwritten."""
    return _MACHINE_ADVICE.get(number or 0, "choose a place where you may write")


def finished_name(path: str | bytes | os.PathLike[str]) -> str:
    """Returns the path that something unfinished is to have, as messages show it."""
    return shown(_UNFINISHED.sub(r"\1", os.fsdecode(path)))


def one_line(reason: object, limit: int | None = None) -> str:
    """Puts the text of an error, or of anything else, on one line.

    Args:
      reason: The error. One without a text gives the name of its class.
      limit: The number of characters after which the text is cut off; `None` keeps all.

    Returns:
      The text with every run of white space, line ends included, as one space.
    """
    text = printable(" ".join(str(reason).split()))[:limit]
    return text or (type(reason).__name__ if isinstance(reason, BaseException) else "")


def error_line(stderr: str) -> str:
    """Finds the line that names the error of a program that failed.

    Args:
      stderr: What the program printed.

    Returns:
      The line of the last exception, else the last line. The text of an exception may go on for
      many lines after that which names it.
    """
    lines = [line for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if _EXCEPTION.match(line)]
    return (named or lines or ["it printed no error"])[-1].strip()


def printable(text: str) -> str:
    """Replaces what UTF-8 cannot hold: bytes of a file's name that are no text become `\\xe9`."""
    return _FILE_NAME_BYTES.sub(_escaped, text)


def _escaped(bytes_as_text: re.Match[str]) -> str:
    # In a locale without UTF-8, these may be the bytes of a letter.
    return bytes_as_text[0].encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    """Returns a file's name as messages and pages show it: on one line, as `caf\\xe9\\n.png`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in printable(name)
    )


def near_matches(
    word: str, known: Iterable[str], limit: int = 1, *, cutoff: float = 0.6
) -> list[str]:
    """Returns the names that a misspelt word may mean, the nearest first; capitals do not count.

    Args:
      word: The word.
      known: All names.
      limit: How many names to return at most.
      cutoff: How alike a name must be, from 0 to 1.
    """
    by_lower: dict[str, str] = {}
    for name in known:
        by_lower.setdefault(name.lower(), name)
    near = difflib.get_close_matches(word.lower(), by_lower, n=limit, cutoff=cutoff)
    return [by_lower[name] for name in near]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean NAME?" to end a message with, or nothing if no name is near."""
    near = near_matches(word, known)
    return f"; did you mean {near[0]}?" if near else ""
