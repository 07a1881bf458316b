"""Underscores are those of formulas, as in ∇_l L: emphasis is written with stars."""

from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig


class PlainUnderscores(Extension):
    """Takes emphasis by underscores out of Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Called once for each Markdown."""
        md.delimiters.remove("_")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add it for pages and docstrings."""
    config.markdown_extensions.append(PlainUnderscores())  # type: ignore[arg-type]
    return config
