"""Adds the pages that are made from the code to the site; MkDocs calls it at each build."""

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_pages import architecture, configuration, configurations, heads, programs, tutorial
from site_pages.links import FROM_ROOT, relinked
from site_pages.navigation import expand
from site_pages.text import ROOT


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages, and fills in the folders of the navigation."""
    made = {
        **programs.pages(),
        configuration.PATH: configuration.page(),
        configurations.PATH: configurations.page(),
        heads.PATH: heads.page(),
        architecture.PATH: architecture.page(),
        **tutorial.page(),
        **{page: (ROOT / name).read_text(encoding="utf-8") for page, name in FROM_ROOT.items()},
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    config.nav = expand(config.nav or [], [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, /, *, page: Page, **_: Any) -> str:
    """Leads the links that work in the repository to the pages of the site."""
    return relinked(markdown, page.file.src_uri)


def on_page_content(html: str, /, **_: Any) -> str:
    """Marks the beginning of options, which docs/stylesheets/site.css keeps on one line."""
    return re.sub(r"<code>(--\w+)", r'<code><span class="option">\1</span>', html)
