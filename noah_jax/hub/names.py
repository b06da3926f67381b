"""Names of checkpoints that are not on this machine."""

import re
import urllib.parse
from typing import NamedTuple

from noah_jax.errors import InputError

HUGGING_FACE = "hf://"
RELEASED = "released://"
_URLS = ("https://", "http://")

_FORM = "hf://USER/NAME, hf://USER/NAME@REVISION or hf://USER/NAME/FILE"
# Revisions of pull requests hold slashes, as in Hugging Face's own names.
_NAME = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?"
    r"(?:/(?P<file>[^@]+?))?/?\Z"
)


class HubName(NamedTuple):
    """A repository of Hugging Face's hub, or a file in it.

    Attributes:
      repository: Its name there, such as `timm/resnet50.tv_in1k`.
      revision: A branch, a tag or a commit; `None` is the main branch.
      file: The path of a file in it; `None` finds the weights.
    """

    repository: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUGGING_FACE}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def parse_hub_name(text: str) -> HubName:
    """Parses `hf://USER/NAME[@REVISION][/FILE]`.

    >>> parse_hub_name("hf://timm/resnet50.tv_in1k@v1")
    HubName(repository='timm/resnet50.tv_in1k', revision='v1', file=None)

    Args:
      text: The name. A slash in a revision is written `%2F`, except in `refs/pr/1`.

    Raises:
      InputError: If it is no such name.
    """
    match = _NAME.match(text)
    if match is None or ".." in (match["file"] or "").split("/"):
        raise InputError(f"{text} is no repository of Hugging Face's; expected {_FORM}")
    revision = match["revision"] and urllib.parse.unquote(match["revision"])
    return HubName(match["repository"], revision, match["file"])


def is_url(name: str) -> bool:
    """Says whether a checkpoint's name is the address of a file on the web."""
    return name.startswith(_URLS)


def is_elsewhere(name: str) -> bool:
    """Says whether a checkpoint's name is one that has to be downloaded first."""
    return name.startswith((HUGGING_FACE, RELEASED)) or is_url(name)
