"""The docs are true: every code block is run or checked, and what they point to is there.

A block's info string is its language, and the file's name where it is a file of the page's example (`python lines.py`).
The blocks of a page share a folder and come one after the other.

    python   a script, which is run; with a name it is written, for the blocks that follow
    yaml     a config or task file: `tc-worker check`
    toml     a pyproject.toml: its entry points are installed
    sh       run by bash, except for `make` lines, whose targets must exist
    output   what the `sh` block before it has printed; `…` stands for anything, alone for lines
    text     a drawing
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.cli import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").iterdir())
LIMIT = 60  # seconds for a block
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))

pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@dataclass
class Reader:
    """Somebody who does what a page says, in a folder of their own; `printed` is what the last block has printed."""

    folder: Path
    printed: str = ""

    def run(self, *argv: str) -> None:
        """Run a command to its end, and end what it leaves behind."""
        home = self.folder.parent
        env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WORKER_TOKEN": "a-token-of-the-tests",
        }
        out, err = home / "stdout", home / "stderr"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                argv, cwd=self.folder, env=env, stdout=stdout, stderr=stderr, start_new_session=True
            )
            try:
                code = process.wait(LIMIT)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self.printed = out.read_text()
        assert code == 0, f"{argv[-1]}\nexits with {code}:\n{self.printed}\n{err.read_text()}"

    def read(self, language: str, name: str, code: str) -> None:
        """Do what one block says."""
        if name:
            (self.folder / name).write_text(code)
        match language:
            case "python":
                compile(code, name or "a block", "exec")
                if not name:
                    self.run(sys.executable, "-c", code)
            case "yaml":
                (self.folder / (name or "block.yml")).write_text(code)
                self.run("tc-worker", "check", name or "block.yml")
            case "toml":
                self.install(tomllib.loads(code)["project"])
            case "sh" if code.startswith("make "):
                assert all(line.split()[0] == "make" for line in code.splitlines())  # the test of targets does the rest
            case "sh":
                self.run("bash", "-euo", "pipefail", "-c", code)
            case "output":
                pattern = re.sub(r"^…\\\n", r"(?:.*\\n)*", re.escape(code), flags=re.M).replace("…", ".*")
                assert re.fullmatch(pattern, self.printed), f"not what is printed:\n{self.printed}"
            case "text":
                pass
            case _:
                raise AssertionError(f"nothing checks a block of {language!r}")

    def install(self, project: dict[str, Any]) -> None:
        """As `pip install --editable .` would, for lack of a network."""
        info = self.folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Language, file name and code of each block."""
    text = page.read_text()
    found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.M)
    assert 2 * len(found) == text.count("```"), "a block is not where it would be seen: at the beginning of a line"
    for info, code in found:
        language, _, name = info.partition(" ")
        yield language, name, code


@pages
def test_what_the_blocks_say_works(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    reader = Reader(folder)
    for block in blocks(page):
        reader.read(*block)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_the_examples_are_valid(example: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Reader(tmp_path / "folder").run("tc-worker", "check", str(example))


@pages
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
    for path in re.findall(r"`((?:worker|engines|plugins|tests|bench|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make ([a-z0-9-]+)", text) + re.findall(r"^make ([a-z0-9-]+)$", page.read_text(), re.M):
        assert target in TARGETS, f"there is no `make {target}`"
    for name in re.findall(r"`tc-worker ([a-z]+)", text):
        assert name in commands.commands, f"there is no `tc-worker {name}`"
