"""The documentation is true: links lead somewhere, commands run, config keys exist, figures stand in the tables.

`docs/figures.csv` names, for every figure, its row in eval/results; `docs/other_numbers.csv` lists the numbers that
come from no table, with the reason. docs/log.md is history and may hold any number.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
import runpy
import shlex
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from dixit.config import load_config
from eval.pairs import path_of
from eval.tables import RESULTS, look_up

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"),
                *(ROOT / "eval").glob("*.md")])
MEASURED = sorted([ROOT / "README.md", ROOT / "docs" / "speed.md", *(ROOT / "docs" / "experiments").glob("*.md")])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str, inline: bool = True) -> str:
    text = re.sub(r"^```.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text) if inline else text


def test_the_readme_is_one_page():
    text = (ROOT / "README.md").read_bytes()
    assert text.count(b"\n") <= 200 and len(text) <= 12_000


# --- links ---


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", without_code(page.read_text(), inline=False), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names = itertools.chain([slug], (f"{slug}-{i}" for i in itertools.count(1)))
        found.add(next(name for name in names if name not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_what_exists(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


# --- commands ---


@cache
def commands() -> dict[str, list[str]]:
    """Every command in the code of the pages, as words -> the pages that name it; environment variables left out."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        if page.parent == ROOT / "eval" or page.parent.name == "dynamics":
            continue  # generated; their commands are those that were run
        text = page.read_text()
        lines = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
                 for line in block.splitlines()]
        lines += re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)  # an indented block
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(text, inline=False))]
        for line in lines:
            line = re.sub(r"^(\w+=\S+ )+", "", line.strip())
            if re.match(r"python -m (dixit|eval)\b|python scripts/|accelerate launch .*scripts/train\.py|scripts/\w"
                        r"|dixit [a-z]", line):
                found.setdefault(line, []).append(name_of(page))
    return found


def programs() -> list[str]:
    """What the commands run, each once: words to which --help may be added."""
    found = set()
    for line in commands():
        words = shlex.split(line, comments=True)
        if words[0] == "accelerate":
            found.add("python scripts/train.py")
        elif words[0] in ("python", "dixit"):
            found.add(" ".join(words[:3] if words[1] == "-m" else words[:2]))
        elif not Path(words[0]).suffix:
            found.add(words[0])
    return sorted(found)


@pytest.mark.parametrize("program", programs())
def test_documented_commands_run(program, monkeypatch, capsys):
    words = program.split()
    if words[0].startswith("scripts/"):
        script = ROOT / words[0]
        assert os.access(script, os.X_OK)
        wrapped = re.search(r'^exec \.venv/bin/python (.+) "\$@"', script.read_text(), re.MULTILINE)
        if not wrapped:  # it would set things up; a look at its syntax must do
            subprocess.run(["bash", "-n", script], check=True)
            return
        words = ["python", *wrapped[1].split()]
    if words[0] == "dixit":
        if not (ROOT / "dixit" / "__main__.py").is_file():
            pytest.skip("there is no dixit/__main__.py")
        words = ["python", "-m", *words]
    module, rest = (words[2], words[3:]) if words[1] == "-m" else ("", words[2:])
    monkeypatch.setattr(sys, "argv", [words[1], *rest, "--help"])
    with pytest.raises(SystemExit) as end:  # in this process, where torch is imported already
        if module:
            runpy.run_module(module, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    assert not end.value.code and "usage" in capsys.readouterr().out.lower()


def config_path(word: str) -> Path | None:
    """The config that a command names, by path or by name; None for a placeholder such as CONFIG."""
    if word.isupper():
        return None
    return next((path for path in (ROOT / word, *(ROOT / f"configs/{folder}{word}.yaml"
                                                  for folder in ("", "pairs/", "pictures/", "recipes/")))
                 if path.is_file()), ROOT / word)


def trainings() -> Iterator[tuple[str, list[Path], list[str]]]:
    """(command, configs, overrides) of each documented training."""
    for line in commands():
        words = shlex.split(line, comments=True)
        if "scripts/train.py" in words or words[:2] == ["dixit", "train"]:
            at = words.index("scripts/train.py") + 1 if "scripts/train.py" in words else 2
            config = config_path(words[at]) if len(words) > at else None
            configs, overrides = [config] if config else [], words[at + 1:]
        elif words[0] == "scripts/run_pairs":
            named = list(itertools.takewhile(lambda word: not word.startswith("--"), words[1:]))
            configs = [path_of(word) for word in named if not word.isupper()]
            overrides = words[words.index("--set") + 1:] if "--set" in words else []
        else:
            continue
        yield line, configs, [word for word in overrides if "=" in word and not re.search(r"=[A-Z_]{2,}$", word)]


@pytest.mark.parametrize(("line", "configs", "overrides"), list(trainings()))
def test_documented_trainings_have_valid_configs(line, configs, overrides):
    for config in configs:
        load_config(config, overrides)


def test_documented_overrides_and_yaml_are_valid():
    for page in PAGES:
        if page.parent == ROOT / "eval" or page.parent.name == "dynamics":
            continue
        text = page.read_text()
        for code in re.findall(r"`((?:data|speaker|game|policy|train|eval|listeners\.\d|heldout\.\d)\.\w+=[^`\s]+)`",
                               text):
            load_config(ROOT / "configs/colour_vs_grey.yaml", [code])
        for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            check_yaml(block)


def check_yaml(block: str) -> None:
    """A YAML block holds parts of a config; a key may stand there more than once, as alternatives."""
    parts: list[str] = []
    for line in block.splitlines():
        if re.match(r"\w", line):
            parts.append(line)
        else:
            parts[-1] += "\n" + line
    for part in parts:
        path = ROOT / "configs/colour_vs_grey.yaml"
        key, _, value = part.partition(":")
        load_config(path, [f"{key}={yaml.safe_dump(yaml.safe_load(value), default_flow_style=True, width=10_000)}"])


# --- figures ---


def entries(name: str) -> list[dict[str, str]]:
    with (ROOT / "docs" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def plain(text: str) -> str:
    """A page's text on one line, without code, link targets and emphasis; a table keeps its bars."""
    return " ".join(re.sub(r"\]\([^)\s]+\)", "]", without_code(text)).replace("**", "").split())


def row_cells(line: str) -> list[str]:
    return [cell.strip().replace("**", "").replace("`", "") for cell in line.strip().strip("|").split("|")]


def tables(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header, rows) of each table of a page, emphasis removed."""
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        header, _, *rows = map(row_cells, block.splitlines())
        yield header, rows


@cache
def findings() -> dict[tuple[str, str], dict[str, str]]:
    """The rows of dynamics_speaker.csv, which has columns of its own, by (page, finding)."""
    with (RESULTS / "dynamics_speaker.csv").open(newline="", encoding="utf-8") as file:
        return {(row["page"], row["finding"]): row for row in csv.DictReader(file)}


def number(entry: dict[str, str], field: str) -> float:
    """A field of the entry's row: mean, se, low, high; percent, percent_se, ... is 100 times it, minus is -mean.

    `A ÷ B` as speaker or figure is the ratio of two rows; its error is that of independent figures.
    """
    if field == "minus":
        return -number(entry, "mean")
    if field.startswith("percent"):
        return 100 * number(entry, field.removeprefix("percent").removeprefix("_") or "mean")
    for key in ("speaker", "figure"):
        if " ÷ " in entry[key]:
            above, below = (entry | {key: part} for part in entry[key].split(" ÷ "))
            ratio = number(above, "mean") / number(below, "mean")
            if field == "mean":
                return ratio
            return math.hypot(number(above, "se"), ratio * number(below, "se")) / abs(number(below, "mean"))
    if entry["experiment"] == "dynamics_speaker":
        return float(findings()[entry["condition"], entry["figure"]][field])
    return look_up(entry["experiment"], entry["condition"], entry["seed"], entry["speaker"], entry["figure"], field)


def shown(entry: dict[str, str]) -> str:
    """The figure as its format writes it."""
    return entry["format"].format(**{name: number(entry, name) for name in placeholders(entry["format"])})


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


Position = tuple[str, int, int]  # of a table's cell: header, row, column


def cells(entry: dict[str, str]) -> list[tuple[dict[str, str], str, Position]]:
    """The table cells that an entry `[row | column]` is about, each with the entry for its row, and where it stands.

    A row is named by its first cell, `*` is every row; `{header}` in the entry stands for the row's cell below it.
    """
    row_name, column = entry["text"][1:-1].split(" | ")
    keys = ("condition", "seed", "speaker", "figure")
    needed = set().union(*(placeholders(entry[key]) for key in keys))
    found = []
    for header, rows in tables(ROOT / entry["page"]):
        if column not in header or not needed <= set(header):
            continue
        for i, row in enumerate(rows):
            cell = row[header.index(column)]
            if row_name in ("*", row[0]) and re.search(r"\d", cell):
                names = dict(zip(header, row, strict=True))
                position = (" | ".join(header), i, header.index(column))
                found.append((entry | {key: entry[key].format(**names) for key in keys}, cell, position))
    return found


def label(entry: dict[str, str]) -> str:
    return f"{entry['page']}: {entry['text']}"


@pytest.mark.parametrize("entry", entries("figures.csv"), ids=label)
def test_figures_are_those_of_the_tables(entry):
    assert (RESULTS / f"{entry['experiment']}.csv").is_file()
    if entry["text"].startswith("["):
        found = cells(entry)
        assert found, "no such cell"
        wrong = [f"{cell}, not {shown(one)}" for one, cell, _ in found if shown(one) != cell]
        assert not wrong
    else:
        text = plain((ROOT / entry["page"]).read_text())
        assert text.count(entry["text"]) == 1, "the words around a figure must name one place in the page"
        assert re.search(rf"(?<![-−.\d]){re.escape(shown(entry))}(?!\d)", entry["text"]), shown(entry)
        assert not re.search(rf"[-−.\d]{re.escape(entry['text'])}", text)


NUMBER = r"\d*\.\d+|\d+(?= ?%)"  # what must be covered: decimals and percentages


@pytest.mark.parametrize("page", MEASURED, ids=name_of)
def test_every_figure_has_a_row(page):
    """Every decimal and percentage is that of an entry or of other_numbers.csv; a row's name may hold any."""
    named = [entry for entry in entries("figures.csv") if entry["page"] == name_of(page)]
    in_tables = {position for entry in named if entry["text"].startswith("[") for *_, position in cells(entry)}
    lines = page.read_text().splitlines(keepends=True)
    start = 0
    while start < len(lines):
        if not lines[start].startswith("|"):
            start += 1
            continue
        stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        header = " | ".join(row_cells(lines[start]))
        for i in range(start + 2, stop):
            _, *rest = row_cells(lines[i])
            kept = ("" if (header, i - start - 2, column) in in_tables else cell for column, cell in enumerate(rest, 1))
            lines[i] = " | ".join(["|", *kept, "|"]) + "\n"
        start = stop
    text = plain("".join(lines))
    parts = [(entry["text"], shown(entry)) for entry in named if not entry["text"].startswith("[")]
    parts += [(entry["text"],) * 2 for entry in entries("other_numbers.csv") if entry["page"] == name_of(page)]
    covered = {at for around, part in parts for found in re.finditer(re.escape(around), text)
               for at in range(found.start() + around.index(part), found.start() + around.index(part) + len(part))}
    assert not [text[max(0, found.start() - 30):found.end() + 10] for found in re.finditer(NUMBER, text)
                if found.start() not in covered]


def test_every_commit_in_the_docs_exists():
    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)

    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the whole history")
    hashes = {found for page in (ROOT / "docs").rglob("*.md") for found in
              re.findall(r"(?<![\w#/.])(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,12}(?![\w.])", page.read_text())}
    assert len(hashes) > 20
    assert not [commit for commit in sorted(hashes) if git("cat-file", "-e", f"{commit}^{{commit}}").returncode]


@pytest.mark.parametrize("entry", entries("other_numbers.csv"), ids=label)
def test_other_numbers_are_there_and_have_a_reason(entry):
    assert entry["reason"] and entry["text"] in plain((ROOT / entry["page"]).read_text())
