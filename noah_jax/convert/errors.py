"""The one error of reading a file."""


class ReadError(ValueError):
    """A file that cannot be read; one line says what was found, what was expected, what to do."""
