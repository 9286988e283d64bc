"""
The house as DESIGN has it: which way imports point, how long things are, and that what is public
says what it takes.
"""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT


PACKAGE = ROOT / "pipeline_pfgmpp"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [
    ROOT / "train_accelerate.py",
    *(path for room in ("space", "benchmarks", "experiments") for path in (ROOT / room).glob("*.py")),
]
ALL = sorted([*FILES, *SCRIPTS, *(ROOT / "examples").glob("*.py")])

# What each room may import, besides itself and what stands beside it on the ground.
GROUND = {"root", "records"}
ROOMS = {
    "root": set(),
    "records": {"root"},
    "data": GROUND,
    "pictures": GROUND,
    "hub": GROUND,
    "generation": GROUND | {"data", "pictures"},
    "conversion": GROUND | {"hub"},
    "evaluation": GROUND | {"data", "pictures", "generation", "hub"},
    "training": GROUND | {"data", "pictures", "generation", "evaluation", "hub"},
    "commands": GROUND | {"data", "pictures", "generation", "evaluation", "training", "conversion", "hub"},
}
# `__init__` lists the public names, and `__main__` is the command line: neither travels.
DOORS = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}


def name(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "root"


def list_imports(path):
    """The modules of this repository that a file imports, at its top or inside a function, as paths."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["pipeline_pfgmpp", *path.relative_to(PACKAGE).parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (module for module in modules if module.split(".")[0] == "pipeline_pfgmpp")


def find_room(module):
    """The room of a module of the package, or of a name in one."""
    parts = module.split(".")[1:]
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else "root"


def test_every_room_is_known():
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in FILES if path not in DOORS], ids=name)
def test_imports_point_one_way(path):
    room = room_of(path)
    for module in list_imports(path):
        assert find_room(module) in ROOMS[room] | {room}, f"{name(path)} imports {module}"
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"train_accelerate", "space", "app", "benchmarks", "experiments"}


# numpy and PIL come with diffusers.
INSTALLED_WITH_DIFFUSERS = {*sys.stdlib_module_names, "torch", "diffusers", "numpy", "PIL"}


def test_what_travels_imports_only_its_neighbours():
    """With `trust_remote_code=True` the files at the root run where only diffusers is installed."""
    for path in PACKAGE.glob("*.py"):
        if path in DOORS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name(path)
                assert node.module, f"{name(path)} imports from `.`"
                assert (PACKAGE / f"{node.module}.py").is_file(), f"{name(path)} imports {node.module}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                assert {module.split(".")[0] for module in modules} <= INSTALLED_WITH_DIFFUSERS, name(path)


def list_neighbours(path):
    """The files beside one that it imports."""
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {path.with_name(f"{node.module}.py") for node in imports}


@pytest.mark.parametrize(
    "stem", ["pipeline_pfgmpp", "pipeline_pfgmpp_restoration", "scheduling_pfgmpp", "empirical_denoiser"]
)
def test_what_travels_imports_itself_all_that_it_needs(stem):
    """From a local folder diffusers copies what a class's file imports, and not what that imports in turn."""
    direct = list_neighbours(PACKAGE / f"{stem}.py")
    indirect = {path for neighbour in direct for path in list_neighbours(neighbour)}
    assert indirect <= direct, indirect - direct


@pytest.mark.parametrize("stem", ["unet_pfgmpp", "unet_ddpm"])
def test_networks_that_travel_are_one_file(stem):
    """From the Hub diffusers fetches one file of code beside weights."""
    assert not list_neighbours(PACKAGE / f"{stem}.py")


# The call of diffusers' pipelines is one story, and a list of arguments is a list.
LONG = re.compile(
    r"pipeline_pfgmpp/pipeline_pfgmpp\.py:PFGMPPPipeline\.__call__|.*:add_\w*(arguments|parser)"
)


def list_functions(tree, owner=""):
    """The functions of a module with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{owner}{node.name}", node
            yield from list_functions(node, f"{owner}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from list_functions(node, f"{owner}{node.name}.")


def count_body(node):
    """The lines of a function's body without its docstring."""
    documented = ast.get_docstring(node) is not None
    body = node.body[1:] if documented else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", ALL, ids=name)
def test_nothing_is_longer_than_a_reader_can_hold(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    for function, node in list_functions(ast.parse(text)):
        if not LONG.fullmatch(f"{name(path)}:{function}"):
            assert count_body(node) <= 80, f"{function} has {count_body(node)} lines"


def is_public(function):
    return not any(part.startswith("_") and part != "__init__" for part in function.split("."))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_functions_are_annotated_and_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module says nothing of itself"
    methods = {id(child) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    inner = {id(child) for _, node in list_functions(tree) for child in ast.walk(node) if child is not node}
    for function, node in list_functions(tree):
        if not is_public(function) or id(node) in inner:
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if id(node) in methods and not any(
            getattr(each, "id", "") == "staticmethod" for each in node.decorator_list
        ):
            arguments = arguments[1:]
        missing = [argument.arg for argument in arguments if argument.annotation is None]
        assert not missing, f"{function} does not annotate {', '.join(missing)}"
        if node.name != "__init__":
            assert node.returns is not None, f"{function} does not annotate what it returns"
            assert ast.get_docstring(node), f"{function} has no docstring"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_one_thing_at_a_time(path):
    """No conditional expression inside another, and no two assignments in one statement."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.IfExp):
            nested = [child for child in ast.walk(node) if isinstance(child, ast.IfExp) and child is not node]
            assert not nested, f"line {node.lineno}"
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            assert_swap(node)


def assert_swap(node):
    """`a, b = b, a` says something that two statements do not."""
    targets = {ast.dump(each).replace("Store", "Load") for each in node.targets[0].elts}
    values = {ast.dump(each) for each in node.value.elts}
    assert targets & values, f"line {node.lineno} holds two assignments"


def test_files_and_folders_are_replaced_in_one_place():
    for path in ALL:
        if name(path) != "pipeline_pfgmpp/records/writing.py":
            assert not re.search(r"\bos\.(replace|rename)\(", path.read_text()), name(path)


def test_types_are_right():
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
