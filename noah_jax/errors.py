"""Defines the errors that a user can mend.

The programs print a `NoahError` as one line and exit with a non-zero code; any other exception is
a bug of this package and shows its traceback. `NOAH_TRACEBACK=1` in the environment shows the
traceback of a `NoahError` too.
"""


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

    def __init__(self, name: str, reason: str):
        # An exception that comes from another process is made anew from these arguments.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} cannot be decoded: {self.reason}"


class UnlabelledImageError(CorruptImageError):
    """Raised if an image's label is none of the classes; TFDS has -1 where there is no label."""

    def __str__(self) -> str:
        return f"{self.name} has no label: {self.reason}"


class MissingPackageError(NoahError, ModuleNotFoundError):
    """Raised if a package is not installed; the message names the extra that brings it."""


class ReadError(InputError):
    """Raised if a file cannot be read; says what was found, what was expected and what to do."""


class WriteError(NoahError, OSError):
    """Raised if a file or folder cannot be written; says which one, why and what to do."""


class ConversionError(InputError):
    """Raised if a state dict is not the model's; the message lists every problem."""


class CheckpointError(NoahError):
    """Raised if no checkpoint of a run can be used."""


class CompileError(NoahError):
    """Raised if XLA cannot compile a program for a device, or the device lacks the memory."""


class NonFiniteError(NoahError):
    """Raised if a loss or a weight is not finite."""


class JoinError(NoahError):
    """Raised if the other processes of a run cannot be reached; a later try may succeed."""


def one_line(reason: object, limit: int | None = None) -> str:
    """Puts the text of an error, or of anything else, on one line.

    Args:
      reason: The error. One without a text gives the name of its class.
      limit: The number of characters after which the text is cut off; `None` keeps all.

    Returns:
      The text with every run of white space, line ends included, as one space.
    """
    text = " ".join(str(reason).split())[:limit]
    return text or (type(reason).__name__ if isinstance(reason, BaseException) else "")
