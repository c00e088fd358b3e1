"""The README and docs/ keep their promises: commands parse, Python names exist, links lead somewhere, figures are
measured."""

import ast
import importlib
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import report
from documentation import PAGES, ROOT, blocks, commands

README = PAGES["README.md"]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# In front of a table: every number in the table's body comes from one of these records.
RECORD_MARK = re.compile(r"<!-- (figures|speed): ((?:benchmarks/results/[\w.-]+\.json )+)-->$")
KNOWN = {
    "pip",
    "pytest",
    "python",
    "python3",
    "ruff",
    "git",
    "cd",
    "export",
    "eval",
    ".",
    ".ci/run",
    "curl",
    "docker",
    "sbatch",
    "serve",
    "torchrun",
    "tritonserver",
}
MEASURED = re.compile(r"\d\s?(?:ms|s|fps|dB)\b|cosine", flags=re.IGNORECASE)


def load_script(path: Path) -> ModuleType:
    """Import a script of benchmarks/ without running it."""
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def click_command(module: ModuleType) -> click.Command:
    """The command of a module: its group if it has one, else its only command."""
    found = [value for value in vars(module).values() if isinstance(value, click.Command)]
    groups = [value for value in found if isinstance(value, click.Group)]
    groups = [group for group in groups if not any(group in other.commands.values() for other in groups)]
    (command,) = groups or found
    return command


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse `words` as click would, down to the last subcommand, and call nothing."""
    context = command.make_context(command.name, list(words), parent=parent)
    if isinstance(command, click.Group):
        _, subcommand, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert subcommand is not None
        parse(subcommand, rest, context)


def make_arguments_exist(words: list[str], folder: Path) -> None:
    """An empty file or folder in `folder` for every word that reads like a path, so that existence checks pass."""
    for word in words:
        if word.startswith("-"):
            continue
        path = folder / word
        if re.fullmatch(r"[\w/.-]+\.\w+", word):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif re.fullmatch(r"[\w/.-]+/?", word):
            path.mkdir(parents=True, exist_ok=True)


DISTINCT = list({tuple(words): words for _, words in commands()}.values())


@pytest.mark.parametrize("words", DISTINCT, ids=" ".join)
def test_commands_parse(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if "..." in arguments:
        return  # the rest is left to the reader
    if program in SCRIPTS:
        command = click_command(importlib.import_module(SCRIPTS[program].split(":")[0]))
    elif program in ("python", "python3") and arguments[0].endswith(".py"):
        command = click_command(load_script(ROOT / arguments.pop(0)))
    else:
        assert program in KNOWN, words
        return
    make_arguments_exist(arguments, tmp_path)
    monkeypatch.chdir(tmp_path)
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(click.exceptions.Exit) as stopped:
            parse(command, arguments)
        assert stopped.value.exit_code == 0
    else:
        parse(command, arguments)


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.encode()) <= 9000


def test_the_readme_leads_to_every_page() -> None:
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in README] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page_opens_with_its_title_and_shows_a_command_or_code_before_it_explains(page: str) -> None:
    first_screen = "\n".join(PAGES[page].splitlines()[:25])
    assert first_screen.startswith("# ")
    assert "```" in first_screen


def test_the_first_screen_has_the_picture_and_the_two_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    assert "docs/grid" in first_screen
    assert "pip install . && fid-run demo" in first_screen
    assert "pip install '.[dev]' && pytest" in first_screen


def test_every_subcommand_of_fid_run_is_shown() -> None:
    group = click_command(importlib.import_module("fid.runtime.commands.cli"))
    assert isinstance(group, click.Group)
    shown = {words[1] for _, words in commands() if words[0] == "fid-run" and len(words) > 1}
    visible = {name for name, command in group.commands.items() if not command.hidden}
    assert visible <= shown


def test_python_blocks_are_short_and_use_names_that_exist() -> None:
    assert blocks("docs/python.md", "python")
    for page, block in [(name, block) for name in PAGES for block in blocks(name, "python")]:
        compile(block, page, "exec")
        assert len([line for line in block.splitlines() if line.strip()]) < 12
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_pictures_and_headings_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) + re.findall(r"(?:src|href)=\"([^\"]+)\"", PAGES[page])
    for link in (link for link in links if not re.match(r"https?:|mailto:", link)):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), link


def test_files_named_in_the_text_exist() -> None:
    text = "\n".join(PAGES.values())
    named = set(re.findall(r"`((?:runtime|trainer|export|benchmarks|docs|tests|LICENSES|\.ci)/[\w./-]*)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


TABLE = re.compile(r"((?:^\|.*\n)+)", flags=re.MULTILINE)
# docs/training.md tells how the weights came about: its figures are those of runs that nobody repeats for a record.
MEASURING = [page for page in PAGES if page != "docs/training.md"]


def tables() -> Iterator[tuple[re.Match[str] | None, list[list[str]]]]:
    """Each table as (the mark before it or None, its header and body rows as cells)."""
    for page, table in [(name, table) for name in MEASURING for table in TABLE.finditer(PAGES[name])]:
        mark = RECORD_MARK.search(PAGES[page][: table.start()].rstrip())
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table[1].splitlines()]
        yield mark, [rows[0], *rows[2:]]


def test_the_table_of_speed_is_that_of_its_record_and_names_its_machine() -> None:
    (mark,) = report.TABLE_MARK.finditer(PAGES["docs/measured.md"])
    record = json.loads((ROOT / mark[2]).read_text())
    assert mark[0].removeprefix(mark[1]) == report.short_table(record)
    assert mark[1].startswith(report.machine_line(record).partition(" with ")[0])


def numbers_in(record: Any, place: str = "") -> Iterator[tuple[set[str], float]]:
    """All numbers of a JSON value, each with the words of the keys that lead to it."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from numbers_in(value, f"{place} {key}")
    elif isinstance(record, list):
        for value in record:
            name = value.get("name", "") if isinstance(value, dict) else ""
            yield from numbers_in(value, f"{place} {name}")
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield words_of(place), float(record)


def words_of(text: str) -> set[str]:
    """ "landmark_error" -> landmark, error."""
    return set(re.findall(r"[a-z]+", text.lower()))


def test_figures_in_tables_come_from_the_place_in_their_record_that_they_name() -> None:
    for mark, (header, *rows) in tables():
        if mark is None:
            cells = [cell for row in rows for cell in row[1:]]
            assert not [cell for cell in cells if MEASURED.search(cell)], "a measured figure needs its record"
        elif mark[1] == "figures":
            known = [n for file in mark[2].split() for n in numbers_in(json.loads((ROOT / file).read_text()))]
            for label, *cells in rows:
                for title, cell in zip(header[1:], cells, strict=True):
                    others = words_of(" ".join({*header[1:]} - {title})) - words_of(title)  # of another column: off, on
                    places = [
                        (place, value) for place, value in known if place & words_of(label) and not place & others
                    ]
                    for figure in re.findall(r"\d+(?:\.\d+)?", cell):
                        decimals = len(figure.partition(".")[2])
                        assert any(f"{value:.{decimals}f}" == figure for _, value in places), f"{label}: {figure}"
