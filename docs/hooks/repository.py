"""Links from pages to files outside of docs/: such a file becomes a part of the site, below ``repository/``.

So a link has one form, which works in a checkout as well as in the site, and the site needs no other host.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS, BROUGHT_IN = "docs/", "repository/"
FIRST = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "examples/README.md")
"""Pages of the navigation that nothing may link to."""
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Bring in the files that pages link to, and those that these link to."""
    waiting = [*FIRST, *(DOCS + file.src_uri for file in files.documentation_pages())]
    known = set(waiting[len(FIRST) :])
    while waiting:
        path = waiting.pop()
        if path not in known and not path.startswith(DOCS) and (ROOT / path).is_file():
            files.append(File.generated(config, BROUGHT_IN + path, abs_src_path=str(ROOT / path)))
        if path not in known or path.startswith(DOCS):
            known.add(path)
            waiting += [target for target in _targets(path) if target not in known]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to where their targets are in the site."""
    here = page.file.src_uri

    def moved(found: re.Match[str]) -> str:
        if "://" in found[1]:
            return found[1]
        return relpath(_in_site(_target(_in_repository(here), found[1])), dirname(here) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def _targets(path: str) -> Iterator[str]:
    """Files that a page of the repository links to, by their paths there."""
    if path.endswith(".md") and (ROOT / path).is_file():
        for link in LINK.findall(FENCE.sub("", (ROOT / path).read_text())):
            if "://" not in link:
                yield _target(path, link)


def _target(path: str, link: str) -> str:
    return normpath(join(dirname(path), link))


def _in_repository(src_uri: str) -> str:
    return src_uri.removeprefix(BROUGHT_IN) if src_uri.startswith(BROUGHT_IN) else DOCS + src_uri


def _in_site(path: str) -> str:
    return path.removeprefix(DOCS) if path.startswith(DOCS) else BROUGHT_IN + path
