"""The house plan: who may import whom, what importing does, how long a function is, and commands that really exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from running import PROJECT, SCRIPTS, flags_of

if sys.version_info >= (3, 11):
    import tomllib
else:  # which pytest needs there
    import tomli as tomllib

ROOT_FILES = {*SCRIPTS, "config.py", "model.py"}
LONGEST_FUNCTION = 70
# Floors, lowest first. A module may import what lies below it and its own room, the part of its name listed here.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("storyladder.runtime",),
    ("storyladder.settings",),
    ("storyladder.layers", "storyladder.corpus", "storyladder.unknown_flags"),
    ("storyladder.learning", "storyladder.command_line"),
    ("storyladder.results",),
    ("storyladder.telling",),
    ("storyladder.measuring",),
    ("storyladder.stage",),
)
# What is stricter than the floors: all that these may import of ours.
ONLY = {
    "storyladder.runtime.console": (),
    "storyladder.runtime.errors": ("storyladder.runtime.console",),
    "storyladder.settings": ("storyladder.runtime.errors",),
    "storyladder.runtime": ("storyladder.runtime",),
    "storyladder.command_line": (
        "storyladder.settings",
        "storyladder.unknown_flags",
        "storyladder.runtime.errors",
        "storyladder.runtime.cores",
    ),
    "storyladder.unknown_flags": ("storyladder.settings",),
    "config": ("storyladder.settings", "storyladder.command_line"),
    "storyladder.layers": ("storyladder.layers",),
    "model": ("storyladder.settings", "storyladder.layers"),
}
STANDARD_LIBRARY_ONLY = (
    *("storyladder.settings", "storyladder.command_line", "storyladder.unknown_flags", "config"),
    *("storyladder.runtime.errors", "storyladder.runtime.console"),
    *("storyladder.runtime.cores", "storyladder.runtime.control_groups"),
)
TYPING_ONLY = {"typing_extensions"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of ours, by name."""
    folders = [PROJECT / name for name in ("storyladder", "benchmarks")]
    paths = [*PROJECT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(paths)}


def imports(tree: ast.Module) -> Iterator[str]:
    """Everything that is imported, also inside functions and for type checkers; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where one is"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def ours_imported_by(name: str) -> frozenset[str]:
    """The modules of ours that a module imports; a name inside one counts as the module."""
    found = set()
    for target in imports(sources()[name]):
        known = target if target in sources() else target.rpartition(".")[0]
        if known in sources():
            found.add(known)
    return frozenset(found)


def room_of(name: str) -> tuple[int, str]:
    """Floor and room; the longest name wins, so that a module may have a floor of its own."""
    rooms = [(floor, room) for floor, names in enumerate(FLOORS) for room in names if is_in(name, room)]
    assert rooms, f"{name} has no floor; give it one in FLOORS"
    return max(rooms, key=lambda found: len(found[1]))


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def package() -> list[str]:
    return [name for name in sources() if name.startswith("storyladder.")]


def test_imports_run_downwards_only() -> None:
    wrong = []
    for name in package():
        floor, room = room_of(name)
        for target in ours_imported_by(name):
            assert target in package(), f"{name} imports {target}: the package never imports from the root"
            target_floor, target_room = room_of(target)
            if not (target_floor < floor or target_room == room):
                wrong.append(f"{name} (floor {floor}) imports {target} (floor {target_floor})")
    assert wrong == []


@pytest.mark.parametrize("room", ONLY)
def test_some_rooms_are_stricter_than_their_floor(room: str) -> None:
    members = [name for name in sources() if is_in(name, room)]
    assert members
    found = {target for name in members for target in ours_imported_by(name)}
    assert {target for target in found if not any(is_in(target, allowed) for allowed in ONLY[room])} == set()


def test_model_imports_the_layers_in_one_line() -> None:
    assert ours_imported_by("model") == {"storyladder.layers", "storyladder.settings"}


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_help_needs_imports_the_standard_library_only(name: str) -> None:
    roots = {target.partition(".")[0] for target in imports(sources()[name])} - TYPING_ONLY
    assert roots <= {*sys.stdlib_module_names, "storyladder"}


def test_no_script_imports_another_one() -> None:
    for script in SCRIPTS:
        name = script.removesuffix(".py")
        assert ours_imported_by(name) & {"config", *(other.removesuffix(".py") for other in SCRIPTS)} == set()


def test_no_test_file_imports_another_one() -> None:
    """What several share lies in tests/stages.py, steppers.py and running.py."""
    paths = sorted((PROJECT / "tests").glob("test_*.py"))
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    wrong = {
        name: target
        for name, tree in trees.items()
        for target in imports(tree)
        if set(target.split(".")[:2]) & trees.keys()
    }
    assert len(trees) > 40 and wrong == {}


def test_there_are_no_circles() -> None:
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join((*way, name))}"
        if name not in finished:
            for target in sorted(ours_imported_by(name)):
                visit(target, (*way, name))
            finished.add(name)

    for name in sources():
        visit(name, ())
    assert finished == set(sources())


def test_the_checks_above_see_imports_wherever_they_hide() -> None:
    text = "if TYPE_CHECKING:\n    import a.b\ndef f():\n    from c import d as e\n    class g:\n        import h\n"
    assert list(imports(ast.parse(text))) == ["a.b", "c.d", "h"]
    assert "storyladder.stage.loop" in ours_imported_by("train_tiny"), "imported inside main"
    assert "storyladder.corpus.prepare" in ours_imported_by("prepare_data"), "imported for type checkers"
    assert room_of("storyladder.results") == (4, "storyladder.results")
    assert room_of("storyladder.runtime.lock") == (0, "storyladder.runtime")


def test_importing_does_nothing() -> None:
    program = f"""
import importlib, sys
def forbid(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "socket.bind", "socket.connect"):
        raise SystemExit(f"importing {{name}}: {{event}} {{arguments}}")
import numpy, pyarrow.parquet, tiktoken, torch, tqdm  # what they do is not ours
names = {sorted(sources())!r}
before = set(sys.modules)
sys.addaudithook(forbid)
for name in names:
    importlib.import_module(name)
assert not torch.cuda.is_initialized(), "importing initialises CUDA"
assert torch.get_rng_state().equal(torch.Generator().manual_seed(torch.initial_seed()).get_state())
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in sources().items() if not (ast.get_docstring(tree) or "").strip()] == []


def test_no_function_is_longer_than_a_screen() -> None:
    too_long = {}
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    too_long[f"{name}.{node.name}"] = lines
    assert too_long == {}


def test_the_root_holds_only_what_a_user_runs_edits_or_reads() -> None:
    own = {path.name for path in PROJECT.glob("train_*.py")}  # a user's own stages have a script each
    assert {path.name for path in PROJECT.glob("*.py")} - own == ROOT_FILES - own


# --- commands that a user can copy ------------------------------------------------------------------------------------

_COMMAND = re.compile(r"python3? ((?:[\w./-]*/)?\w+\.py\b[^\n`#]*)")


def commands_in(text: str) -> list[str]:
    """Every `python X.py ...`, up to a comment, a back-tick or the end of its line."""
    return [match[1].strip() for match in _COMMAND.finditer(text)]


def fault_of(command: str) -> str | None:
    """Why a command would be refused, or None."""
    script, *words = shlex.split(command, comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&", "2>&1")), None)]
    if not (PROJECT / script).is_file():
        return f"{command}: there is no {script}"
    if script not in ROOT_FILES - {"model.py"} and not script.startswith("benchmarks/"):
        return None
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in flags_of(script)]
    return f"{command}: {script} does not know {', '.join(unknown)}" if unknown else None


def faults_in(text: str) -> list[str]:
    return [fault for command in commands_in(text) if (fault := fault_of(command))]


def test_the_check_of_commands_finds_what_would_be_refused() -> None:
    text = """
    python train_tiny.py --minutes 45   # comment with --oops
    `python3 generate.py --prompt "Once upon -- a time" --top-k=5` and python prepare_data.py --sampel
    ./run python train_tinny.py; python benchmarks/none.py --x
    python train_tiny.py --plan | tee --append plan.txt
    """
    assert commands_in(text)[0] == "train_tiny.py --minutes 45"
    assert faults_in(text) == [
        "prepare_data.py --sampel: prepare_data.py does not know --sampel",
        "train_tinny.py; python benchmarks/none.py --x: there is no train_tinny.py;",
    ]


BENCHMARKS = [
    f"benchmarks/{name}.py" for name in ("training", "generation", "evaluation", "startup", "sharing", "ladder_picture")
]


@pytest.mark.parametrize("script", [*SCRIPTS, "config.py", *BENCHMARKS])
def test_the_commands_in_the_docstring_of_a_script_are_known(script: str) -> None:
    docstring = ast.get_docstring(sources()[script.removesuffix(".py").replace("/", ".")]) or ""
    text = re.sub(r"(?<=\S) {3,}.*", "", docstring)  # what a command is for stands in a column of its own
    assert commands_in(text)
    assert faults_in(text.replace("my_config.py", "config.py")) == []


PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((PROJECT / "docs").glob("*.md"))))


def page(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_on_a_page_are_known(name: str) -> None:
    text = page(name).replace("my_config.py", "config.py")
    assert faults_in(text) == []
    assert unknown_targets_in(text) == []


def test_the_readme_shows_commands() -> None:
    assert len(commands_in(page("README.md"))) > 10


def unknown_targets_in(text: str) -> list[str]:
    """What `make` is told to make, in code, and cannot."""
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    return [
        target for target in re.findall(r"(?:`|^ {4}|run: )make ([\w-]+)", text, re.MULTILINE) if target not in targets
    ]


def test_the_check_of_make_targets_finds_what_is_not_there() -> None:
    text = (
        "    make demo   # make nothing\n`make test`, `make tests`\nThey make sense.\n  - run: make chek PYTHON=python"
    )
    assert unknown_targets_in(text) == ["tests", "chek"]


# --- links ------------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"""\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)\"""")


def links_in(text: str) -> list[str]:
    """Where its links and pictures lead, outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [first or second for first, second in _LINK.findall(text)]


def anchors_of(text: str) -> set[str]:
    """The anchors that a forge gives to headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links_in(text: str, folder: Path) -> list[str]:
    """Links to files of ours, or to headings in them, that are not there."""
    broken = []
    for link in links_in(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = folder / target if target else None
        there = path is None or path.exists()
        if there and anchor:
            there = anchor in anchors_of(path.read_text(encoding="utf-8") if path else text)
        if not there:
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", [*PAGES, "benchmarks/RESULTS.md", "tests/faults/RESULTS.md"])
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links_in(page(name), (PROJECT / name).parent) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = set(), ["README.md"]
    while left:
        name = left.pop()
        reached.add(name)
        targets = [link.partition("#")[0] for link in links_in(page(name)) if ":" not in link]
        found = {str((PROJECT / name).parent.joinpath(t).resolve().relative_to(PROJECT)) for t in targets if t}
        left += sorted((found & set(PAGES)) - reached)
    assert set(PAGES) - reached == set()


def test_the_check_of_links_finds_what_is_broken() -> None:
    text = """# Fast? Yes
    [a](README.md) [b](#fast-yes) [c](https://example.org/x) <img src="docs/none.png"> `[d](none.md)`
    [e](LOG.md#no-such-heading) [f](docs/distributed.md#how-it-works) [g](#slow)
    """
    assert broken_links_in(text, PROJECT) == ["docs/none.png", "LOG.md#no-such-heading", "#slow"]


def test_the_readme_is_for_newcomers() -> None:
    words = [
        word for word in page("README.md").split() if any(map(str.isalpha, word))
    ]  # not numbers, not the | of tables
    assert len(words) < 1_400, "move detail to docs/"


def test_pictures_are_small() -> None:
    large = {
        path.name: path.stat().st_size for path in (PROJECT / "docs").rglob("*.png") if path.stat().st_size > 100_000
    }
    assert large == {}


# --- metadata ---------------------------------------------------------------------------------------------------------


def required_in(name: str) -> list[str]:
    """The packages of a requirements file, without the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in page(name).splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def test_the_dependencies_of_the_project_are_those_of_the_requirements() -> None:
    metadata = tomllib.loads(page("pyproject.toml"))
    assert metadata["project"]["dependencies"] == required_in("requirements.txt")
    assert metadata["dependency-groups"]["dev"] == required_in("requirements-dev.txt")
    assert "build-system" not in metadata, "scripts run from the clone; there is nothing to install"


def test_the_same_versions_stand_everywhere() -> None:
    metadata = tomllib.loads(page("pyproject.toml"))
    oldest = metadata["project"]["requires-python"].removeprefix(">=")
    assert metadata["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert metadata["tool"]["mypy"]["python_version"] == oldest
    assert f'python: "{oldest}"' in page(".github/workflows/tests.yml") and f"Python {oldest}" in page(
        "CONTRIBUTING.md"
    )
    assert f"version: {metadata['project']['version']}\n" in page("CITATION.cff")


def test_the_workflow_and_the_hooks_run_what_make_runs() -> None:
    workflow, makefile = page(".github/workflows/tests.yml"), page("Makefile")
    assert unknown_targets_in(workflow) == [] and "run: make test" in workflow and "run: make check" in workflow
    hooks = re.findall(r"entry: \.venv/bin/python (.+)", page(".pre-commit-config.yaml"))
    assert hooks and [hook for hook in hooks if f"\t$(PY) {hook}\n" not in makefile] == []


def test_the_flags_that_messages_propose_are_known() -> None:
    known = {flag for script in [*SCRIPTS, "config.py"] for flag in flags_of(script)}
    assert {"--fresh", "--limit-mb", "--from", "--config"} <= known
    proposed = {
        (flag, name)
        for name, tree in sources().items()
        if not is_in(name, "benchmarks") and name != "storyladder.unknown_flags"  # which has a test of its own
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value)
    }
    assert ("--limit-mb", "storyladder.corpus.token_file") in proposed
    assert {(flag, name) for flag, name in proposed if flag not in known} == set()
