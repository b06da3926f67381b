"""Adds the pages that are made from the code to the site; MkDocs calls it at each build."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from site_pages import architecture, configuration, configurations, programs
from site_pages.navigation import expand
from site_pages.text import ROOT


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages, and fills in the folders of the navigation."""
    made = {
        **programs.pages(),
        configuration.PATH: configuration.page(),
        configurations.PATH: configurations.page(),
        architecture.PATH: architecture.page(),
        "changelog.md": _from_root("CHANGELOG.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    config.nav = expand(config.nav or [], [file.src_uri for file in files.documentation_pages()])
    return files


def _from_root(name: str) -> str:
    """Returns a file of the repository's root, with its links as seen from docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
