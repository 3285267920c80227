"""The rules of the house, read from the source: who may import whom, names, docstrings, size."""

import ast
import pathlib
import re

import pytest

from trainer.flags import parse_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("data", "model", "trainer", "tools")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
NAMELESS = {"utils", "util", "helpers", "misc", "common"}
OFF_GRAPH = {"py_function", "numpy_function", "from_generator"}
# What modules may call of os: texts and processes. Files are for data/files.py, which knows gs://.
NOT_FILES = {
    *("os.path.join", "os.path.basename", "os.path.dirname", "os.path.splitext"),
    *("os._exit", "os.cpu_count", "os.environ.get", "os.environ.setdefault", "os.getpid"),
    *("os.kill", "os.pipe", "os.read", "os.close", "os.set_blocking"),
}
FILE_MODULES = {"glob", "pathlib", "shutil", "tempfile"}
# Benchmarks read /proc, start programs and keep their data in temporary folders.
BENCHMARKS = "tools/benchmarks/"
LOCAL_FILES = {
    "data/files.py": "is the file layer",
    "model/importers/hdf5_process.py": "starts a program on a local copy",
    "model/importers/keras_files.py": "is that program",
    "tools/benchmark.py": "works in a temporary folder",
    "tools/profile_steps.py": "reads a profile in a temporary folder",
}


def name_of(path):
    """Path of a file as seen from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


def parse(path):
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree):
    """Names of all modules a file imports, those inside functions included."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules.append(node.module)
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


def public_definitions(tree):
    """Public functions, classes and methods of public classes."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def test_the_rooms_are_there():
    assert {name_of(path).split("/")[0] for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    room = ROOMS.index(name_of(path).split("/")[0])
    imported = {module.split(".")[0] for module in imported_modules(parse(path))}
    forbidden = imported & {*ROOMS[room + 1 :], "tests"}
    assert not forbidden, f"{name_of(path)} imports {forbidden}"


def test_no_module_imports_itself_by_a_detour():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    imports = {
        name: set(imported_modules(parse(path))) & names.keys() for name, path in names.items()
    }
    remaining = dict(imports)
    while remaining:
        leaves = [name for name, needed in remaining.items() if not needed & remaining.keys()]
        assert leaves, f"import cycle among {sorted(remaining)}"
        for leaf in leaves:
            del remaining[leaf]
    assert imports["trainer.config"] >= {"data.config", "model.config"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_flags_stay_at_the_top(path):
    if name_of(path).split("/")[0] in ("data", "model"):
        assert "absl.flags" not in imported_modules(parse(path))
    assert "tensorflow.compat.v1" not in imported_modules(parse(path))


def file_accesses(tree):
    """Calls and imports that ask the operating system for files, except for a module's own."""
    found = FILE_MODULES & {module.split(".")[0] for module in imported_modules(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not ast.unparse(node).endswith("(__file__)"):
            if called := re.fullmatch(r"open|os(\.\w+)+", ast.unparse(node.func)):
                found.add(called[0])
        elif isinstance(node, ast.Attribute) and node.attr == "gfile":
            found.add("gfile")
    return found - NOT_FILES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_of_users_go_through_the_file_layer(path):
    found = file_accesses(parse(path))
    if name_of(path).startswith(BENCHMARKS) or name_of(path) in LOCAL_FILES:
        assert found or name_of(path) not in LOCAL_FILES, "needs no exception"
    else:
        assert not found, f"{name_of(path)} uses {found}: data.files has what reads gs:// too"


def test_files_have_names_that_say_something():
    everything = [*FILES, *(ROOT / "tests").rglob("*.py")]
    assert not [name_of(path) for path in everything if path.stem in NAMELESS]


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.py")), ids=name_of)
def test_the_input_pipeline_stays_on_the_graph(path):
    called = {node.attr for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
    assert not called & OFF_GRAPH


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_public_definitions_have_docstrings(path):
    tree = parse(path)
    assert ast.get_docstring(tree), f"{name_of(path)} opens without a docstring"
    bare = [
        node.name
        for node in public_definitions(tree)
        if not ast.get_docstring(node) and node.name not in ("__init__", "build", "call")
    ]
    assert not bare, f"{name_of(path)}: no docstring in {bare}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.flags")), ids=name_of)
def test_flagfiles_are_accepted_and_say_what_they_are_for(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse_flags(["main", f"--flagfile={path}"])
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("Command:", "Hardware:", "Time:", "Expected AP:"):
        assert any(word in line for line in head), f"{name_of(path)} does not state {word}"


def test_every_test_asserts_something():
    silent = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                text = ast.unparse(node)
                if not any(
                    word in text
                    for word in ("assert", "raises", "check", "expect", "agree(", "close(run")
                ):
                    silent.append(f"{name_of(path)}::{node.name}")
    assert not silent


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))])
def test_links_between_pages_resolve(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing
