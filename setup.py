"""The package is described in pyproject.toml. This file only makes its page on the package index from README.md."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
_IMAGE = re.compile(r"!\[([^\]]*)\]\((?![a-z][a-z0-9+.-]*:)([^)\s]+)\)", re.I)
_RELATIVE = re.compile(r"\[([^\]]+)\]\((?![a-z][a-z0-9+.-]*:|#)([^)\s]+)\)", re.I)


def index_page(readme: str, source: str) -> str:
    """The README with links that work away from the repository.

    Args:
        readme: Markdown, whose relative links lead to files of the repository.
        source: address of the repository (`project.urls.Source`); without one a relative link becomes its text, and
            images are left out.
    """
    base = f"{source.rstrip('/')}/blob/main/" if source else ""
    raw = f"{source.rstrip('/')}/raw/main/"
    readme = _IMAGE.sub(lambda image: f"![{image[1]}]({raw}{image[2]})" if source else "", readme)
    return _RELATIVE.sub(lambda link: f"[{link[1]}]({base}{link[2]})" if base else link[1], readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    setup(
        long_description=index_page((HERE / "README.md").read_text("utf-8"), project.get("urls", {}).get("Source", "")),
        long_description_content_type="text/markdown",
    )
