# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""For the site: links to files outside `docs` lead to the repository, if `repo_url` is set, or become text."""

import re
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page. A link to a file that does not exist stays, so that mkdocs warns of it."""

    def replace(link: re.Match) -> str:
        text, target = link[1], link[2].strip()
        if not (ROOT / "docs" / target).exists():
            return link[0]
        path = (ROOT / "docs" / target).resolve().relative_to(ROOT)
        return f"[{text}]({config['repo_url']}/blob/main/{path})" if config["repo_url"] else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\(\s*(\.\./[^)#]+)\)", replace, markdown)
