"""What mkdocs cannot do by itself: pages that lie beside docs/, and links that work in the repository and on the site.

On the site all pages lie in one folder, so a link is led to its file's name there. One that leads to no page is left
as it is, and fails the strict build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
"""Files of the repository that are not in docs/ -> their names on the site."""
_ORIGINS = {name: place for place, name in BESIDE.items()}


def on_files(files: Any, config: Any) -> Any:
    """Add the files beside docs/."""
    for place, name in BESIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Lead links to where their files are on the site."""
    name = page.file.src_uri
    folder = posixpath.dirname(_ORIGINS.get(name, f"docs/{name}"))

    def lead(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, link[1]))
        return f"]({BESIDE.get(place, place.removeprefix('docs/'))}{link[2]})"

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?)\)", lead, markdown)
