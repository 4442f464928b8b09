"""The package is described in pyproject.toml. This file only makes its page on the package index from README.md."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
_RELATIVE = re.compile(r"\[([^\]]+)\]\((?![a-z][a-z0-9+.-]*:|#)([^)\s]+)\)", re.I)


def index_page(readme: str, source: str) -> str:
    """The README with links that work away from the repository.

    Args:
        readme: Markdown, whose relative links lead to files of the repository.
        source: address of the repository (`project.urls.Source`); without one a relative link becomes its text.
    """
    base = f"{source.rstrip('/')}/blob/main/" if source else ""
    return _RELATIVE.sub(lambda link: f"[{link[1]}]({base}{link[2]})" if base else link[1], readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    setup(
        long_description=index_page((HERE / "README.md").read_text("utf-8"), project.get("urls", {}).get("Source", "")),
        long_description_content_type="text/markdown",
    )
