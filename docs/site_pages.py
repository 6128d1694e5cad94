"""Hooks of mkdocs: pages that are made of files outside of docs/, and links that lead to them.

The README, the guides, the notebooks and the results are read in the repository as they are. Here they become pages of
one site; the page of commands is made from the parsers themselves.
"""

import base64
import html
import posixpath
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "training/README.md", "studies/README.md"]
FOLDERS = ["benchmarks/results/*.md", "studies/results/*.png", "studies/results/*.md", "model_cards/*.md"]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def page_of(path: str) -> str:
    """Where the site has a file of the repository, such as docs/guides/data.md."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/").removesuffix(".ipynb") + (".md" if path.endswith(".ipynb") else "")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for pattern in [*PAGES, *FOLDERS]:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, page_of(name), content=path.read_bytes()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for name, content in of_notebook(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def of_notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page and its pictures, by their names."""
    lines: list[str] = []
    made: dict[str, str | bytes] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            lines += [cell.source, ""]
            continue
        lines += ["```python", cell.source, "```", ""]
        for number, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{cell.id}_{number}.png"
                made[name] = base64.b64decode(data["image/png"])
                lines += [f"![Output of the code above]({name})", ""]
            elif "text/html" in data:
                lines += [data["text/html"], ""]
            elif text := output.get("text") or data.get("text/plain"):
                lines += ["```text", text.rstrip(), "```", ""]
    made[f"{path.stem}.md"] = "\n".join(lines)
    return made


def commands() -> str:
    """What each command takes, from its parser."""
    from cond_pipelines.completion import parsers

    lines = [
        "# Commands and flags",
        "",
        "Made from the code. `distill PARENT` takes the flags of `train`.",
        "",
    ]
    for name, parser in parsers().items():
        if name == "distill":
            continue
        lines += [f"## cond-pipelines {name}", "", html.escape(parser.description or "", quote=False), ""]
        for group in parser._action_groups:
            rows = [
                action for action in group._group_actions if action.help != "==SUPPRESS==" and action.dest != "help"
            ]
            if not rows:
                continue
            lines += [f"**{group.title}**", "", "| argument | what it does |", "|---|---|"]
            for action in rows:
                names = ", ".join(action.option_strings) or action.dest
                text = html.escape((action.help or "") % {"default": action.default, "prog": parser.prog}, quote=False)
                lines.append(f"| `{names}` | {text.replace('|', chr(92) + '|')} |")
            lines.append("")
    return "\n".join(lines)


def source_of(page: Page) -> str:
    """The file of the repository that a page shows."""
    uri = page.file.src_uri
    if uri == "index.md":
        return "README.md"
    return uri if (ROOT / uri).is_file() and page.file.generated_by else f"docs/{uri}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages; what is no page stays as text."""
    folder = posixpath.dirname(source_of(page))

    def new(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        target, hash_sign, anchor = link.partition("#")
        if "://" in link or not target or page.file.src_uri.startswith("notebooks/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        uri = page_of(path)
        if files.get_file_from_path(uri) is not None:
            there = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
            return f"{mark}[{text}]({there}{hash_sign}{anchor})"
        if mark or not (ROOT / path).exists():
            return match[0]  # mkdocs says that it is not there
        return f"{text} (`{path}` in the repository)" if text.strip("`") != path else text

    return LINK.sub(new, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw themselves: no script of another server is needed."""

    def mathml(match: re.Match[str]) -> str:
        formula = html.unescape(match[2])[2:-2]  # within \( \) or \[ \]
        return str(convert(formula, display="block" if match[1] == "div" else "inline"))

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', mathml, content, flags=re.DOTALL)
