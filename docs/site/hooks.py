"""Pages that MkDocs makes at build time: commands from `--help`, functions from their docstrings.

Nothing here is written by hand twice: the command reference comes from the command line itself, the
API reference from `featviz.__all__`, the notebooks are executed, and ARCHITECTURE, CONTRIBUTING and
CHANGELOG are the files of the repository. Links from a page to a file outside docs/ become that
file's path as text.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import notebooks
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {f"notebooks/{p.stem}.md": p for p in sorted((ROOT / "docs/notebooks").glob("*.ipynb"))}
sys.path.insert(0, str(ROOT))  # the checkout's featviz, installed or not

COPIED = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

API_GROUPS = {
    "Models and pictures": (
        "layers",
        "models data pictures errors",
    ),
    "Layers, kernels and maps": ("maps", "kernels maps"),
    "Attribution, circuits, ablation": ("attribute", "attribution circuits ablation"),
    "Concepts, descriptions": ("concepts", "concepts descriptions"),
    "Classes of pictures, explorer": ("classify", "classification explorer"),
    "Maximization": ("maximize", "maximization"),
    "From a picture": ("redraw", "from_picture"),
    "Feature space": ("atlas", "embedding neighbors atlas"),
    "Attacks": ("attack", "attacks"),
    "Robustness": ("audit", "robustness corruptions"),
    "Training and comparison": ("train", "training comparison"),
    "Gallery and report": ("gallery", "gallery"),
}
"""pages of the API reference: a command whose picture is shown, and the modules"""

PICTURE = re.compile(r"!\[([^\]]*)\]\((pictures/[\w.-]+)\)\n(\*`featviz ([\w-]+)[^`]*`[^*]*\*)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    config.nav = [
        *(config.nav or []),
        {"Notebooks": [*NOTEBOOKS]},
        {"Commands": [name for name, _ in command_pages()]},
        {"API": [name for name, _ in api_pages()]},
        {"Project": [*COPIED.values()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the gallery's mark."""
    pages = {target: (ROOT / source).read_text() for source, target in COPIED.items()}
    pages |= dict(command_pages())
    pages |= dict(api_pages())
    pages |= {target: notebooks.markdown(path) for target, path in NOTEBOOKS.items()}
    pages["site/mark.svg"] = (ROOT / "featviz/gallery/static/mark.svg").read_text()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files that are no pages become text."""
    here = posixpath.dirname(page.file.src_uri)
    from_root = page.file.src_uri in COPIED.values()

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, _, fragment = target.partition("#")
        if "://" in target or not path:
            return match[0]
        inside = posixpath.normpath(posixpath.join(here, path))
        in_repository = posixpath.normpath(path if from_root else posixpath.join("docs", inside))
        known = COPIED.get(in_repository, in_repository.removeprefix("docs/"))
        known = re.sub(r"\.ipynb$", ".md", known)
        if files.get_file_from_path(known) is not None:
            mark = f"#{fragment}" if fragment else ""
            return f"[{text}]({posixpath.relpath(known, here or '.')}{mark})"
        return text if in_repository in text else f"{text} (`{in_repository}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The outputs of a notebook."""
    notebook = NOTEBOOKS.get(page.file.src_uri)
    return html if notebook is None else notebooks.with_outputs(html, notebook)


def command_pages() -> list[tuple[str, str]]:
    """A page for each command, and one that lists them."""
    from typer.main import get_command

    from featviz.cli.main import COMMANDS, app

    group: Any = get_command(app)
    overview = ["# Commands\n"]
    pages = []
    for title, modules in COMMANDS.items():
        overview.append(f"\n## {title}\n")
        for module in modules:
            name = module.__name__.rpartition(".")[2].replace("_", "-")
            command = group.commands[name]
            first = command.help.partition("\n")[0]
            overview.append(f"- [`featviz {name}`]({name}.md): {first}")
            pages.append((f"reference/commands/{name}.md", _command(name, command)))
    overview += ["\n## Exit codes\n", _exit_codes()]
    return [("reference/commands/index.md", "\n".join(overview)), *pages]


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["featviz", name, *command.collect_usage_pieces(context)])
    help_text = re.sub(r"Example: (featviz .*)", r"```\n\1\n```", command.help)
    lines = [f"# featviz {name}\n", help_text, f"\n```\n{usage}\n```\n", picture_of(name)]
    groups: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        own = "Arguments" if parameter.param_type_name == "argument" else "Options"
        option, text = record
        row = f"| `{option}` | " + text.replace("|", "\\|") + " |"  # in backticks it ends no cell
        groups.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(row)
    for title, rows in groups.items():
        lines += [f"\n## {title}\n", "| option | meaning |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _exit_codes() -> str:
    import featviz.cli.main as module

    return (module.__doc__ or "").partition("\n\n")[2]


def api_pages() -> list[tuple[str, str]]:
    """A page for each group of public names."""
    import featviz

    homes = dict(featviz._LAZY_EXPORTS)
    pages = []
    lines = ["# API\n", "Everything here is importable from `featviz`.\n"]
    for title, (command, modules) in API_GROUPS.items():
        names = sorted(n for n, home in homes.items() if home.split(".")[1] in modules.split())
        file = title.lower().replace(",", "").replace(" ", "-") + ".md"
        links = ", ".join(f"[`{name}`]({file}#{homes[name]}.{name})" for name in names)
        lines.append(f"- **[{title}]({file})**: {links}")
        content = [
            f"# {title}\n",
            picture_of(command),
            *(f"\n::: {homes.pop(name)}.{name}\n" for name in names),
        ]
        pages.append((f"reference/api/{file}", "\n".join(content)))
    if homes:
        raise ValueError(f"docs/site/hooks.py: no page of the API reference has {sorted(homes)}")
    return [("reference/api/index.md", "\n".join(lines)), *pages]


def picture_of(command: str) -> str:
    """The first picture in the guides that a command makes, with the command; "" if none does."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for alt, file, caption, name in PICTURE.findall(page.read_text(encoding="utf-8")):
            if name == command:
                return f"![{alt}](../../{file})\n{caption}\n"
    return ""
