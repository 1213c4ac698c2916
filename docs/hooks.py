"""A hook of MkDocs, which lets the pages link to the whole repository.

On GitHub the pages link to files outside docs/ by relative paths. On the site such a link leads into the repository if
mkdocs.yml has a `repo_url`; without one, the path is shown. A link to a file that does not exist is a warning, and
`mkdocs build --strict` fails. CONTRIBUTING.md and CHANGELOG.md are pages of the site, and images are copied into it.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
IMAGES = "images"
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and images that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for image in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"{IMAGES}/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of a page to files outside docs/; a page without sections needs no table of contents."""
    folder = "" if page.file.src_uri in PAGES.values() else "docs"
    repository = (config.repo_url or "").rstrip("/")
    if "\n## " not in markdown:
        page.meta.setdefault("hide", ["toc"])

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["target"]))
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        if link["image"]:
            return f"![{link['text']}]({IMAGES}/{posixpath.basename(target)})"
        anchor = link["anchor"] or ""
        if target in PAGES:
            return f"[{link['text']}]({PAGES[target]}{anchor})"
        if target.startswith("docs/") and target.endswith(".md"):
            return f"[{link['text']}]({target.removeprefix('docs/')}{anchor})"
        return _source_link(link["text"], target, repository)

    parts = FENCED.split(markdown)
    return "".join(part if index % 2 else LINK.sub(rewritten, part) for index, part in enumerate(parts))


def _source_link(text: str, target: str, repository: str) -> str:
    """Return a link to a file or folder of the repository; without an address of it, the path in its place."""
    if repository:
        kind = "blob" if (ROOT / target).is_file() else "tree"
        return f"[{text}]({repository}/{kind}/main/{target})"
    plain = text.replace("\\", "")
    is_path = target.endswith(plain) or posixpath.splitext(posixpath.basename(target))[0] == plain
    return f"`{plain}`" if is_path else f"{text} `{target}`"
