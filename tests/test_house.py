"""Rooms stand above what they use, nothing imports in a circle, and no file and no list of parameters is too long."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "hesscale_rl"
# From the ground up: a module may import from its own floor and from those below. Other modules of the library stand
# on the first floor whose names they need.
FLOORS = [
    [
        f"{PACKAGE}.{name}"
        for name in ("entering", "errors", "names", "jit", "networks", "losses", "oracle", "system")
    ],
    [f"{PACKAGE}.rules"],
    [f"{PACKAGE}.curvature"],
    [f"{PACKAGE}.compiled"],
    [f"{PACKAGE}.{name}" for name in ("tape", "optim")],
    [f"{PACKAGE}.rl"],
    [f"{PACKAGE}.runs"],
    [f"{PACKAGE}.envs"],
    [f"{PACKAGE}.{name}" for name in ("agents", "playing", "training")],
    [f"{PACKAGE}.scripts"],
    [f"{PACKAGE}.studies"],
]
LINES, PARAMETERS = 400, 8


@cache
def modules():
    """Every module of the project by its installed name: the folders beside the package are linked into it."""
    found = {}
    for folder in (PACKAGE, "agents", "envs", "scripts", "studies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == PACKAGE else (PACKAGE, *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imported(name, path):
    """The project's modules that one imports, in functions too, but not those for type checkers alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    wanted, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            wanted |= {f"{module}.{alias.name}" for alias in node.names}
    known = modules()
    found = set()
    for want in wanted:
        while want and want not in known:
            want = want.rpartition(".")[0]
        found |= {want} - {"", name, PACKAGE}
    return found


@cache
def arrows():
    return {name: imported(name, path) for name, path in modules().items()}


def test_nothing_imports_in_a_circle():
    left = {name: set(to) for name, to in arrows().items()}
    while free := {name for name, to in left.items() if not to & left.keys()}:
        left = {name: to for name, to in left.items() if name not in free}
    circle = {name: sorted(to & left.keys()) for name, to in left.items()}
    assert not circle, f"these import each other, or what does: {circle}"


def floor(name):
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    return None


def test_no_arrow_runs_up():
    up = [
        f"{name} -> {other}"
        for name, to in arrows().items()
        for other in to
        if floor(name) is not None and floor(other) is not None and floor(other) > floor(name)
    ]
    assert not up


def test_a_file_is_short_enough_to_read():
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > LINES}
    assert not long


def test_a_class_has_its_name_alone():
    places = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "Args":  # which is what an agent has its flags in
                places.setdefault(node.name, []).append(name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_a_function_has_few_parameters():
    long = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([a for a in own if a not in ("self", "cls")]) > PARAMETERS:
                    long.add(f"{name.removeprefix(PACKAGE)[1:]}: {node.name}")
    assert not long


def test_the_version_stands_in_one_place():
    import hesscale_rl

    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {hesscale_rl.__version__}\n" in citation
    assert f"## {hesscale_rl.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
