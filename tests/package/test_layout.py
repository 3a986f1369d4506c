"""Imports run one way: no room imports one to its right, and no circle exists, in either language."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "diva_rs"

# From the ground upwards. Rooms on one line do not import each other.
STOREYS = (
    ("errors",),
    ("_native",),
    ("_base",),
    ("recipes", "clip", "distributed"),
    ("diffusion", "data"),
    ("native",),
    ("step",),
    ("evaluation",),
    ("captions",),
    ("run",),
    ("report",),
    ("microworld",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    files = [*PACKAGE.rglob("*.py"), PACKAGE / "_native.pyi"]
    names = {file: file.relative_to(PACKAGE).with_suffix("").parts for file in files}
    return {".".join(part for part in parts if part != "__init__"): file for file, parts in names.items()}


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports anywhere: on top, in functions, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("diva_rs.") for a in node.names if a.name.startswith("diva_rs."))
            assert all(a.name != "diva_rs" for a in node.names), f"{file} imports the facade"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diva_rs":
            base = (node.module or "").removeprefix("diva_rs").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found = inner if inner in known else base
                assert found, f"{file} imports {alias.name} from the facade"
                yield found


def graph() -> dict[str, set[str]]:
    known = modules()
    edges = {name: set(imports(file, known)) - {name} for name, file in known.items() if name}
    for file in (ROOT / "src").rglob("*.rs"):  # the native module raises the exceptions of `errors`
        edges["_native"] |= set(re.findall(r'import\("diva_rs\.([\w.]+)"', file.read_text(encoding="utf-8")))
    return edges


def rooms(edges: dict[str, set[str]], mark: str) -> dict[str, set[str]]:
    """The graph of the folders and single files at the top."""
    found: dict[str, set[str]] = {}
    for name, others in edges.items():
        room = name.split(mark)[0]
        found.setdefault(room, set()).update({other.split(mark)[0] for other in others} - {room})
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, if there is any."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as err:
        return list(err.args[1])
    return []


def test_no_room_imports_one_above_it():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if (here := name.split(".")[0]) != (there := other.split(".")[0]) and LEVEL[there] >= LEVEL[here]
    ]
    assert not upward


def test_there_is_no_circle():
    edges = graph()
    assert edges["_native"] == {"errors"}
    assert not circle(edges) and not circle(rooms(edges, "."))


def test_the_top_level_is_small():
    entries = [p for p in PACKAGE.iterdir() if p.name != "__pycache__" and p.suffix != ".so"]
    assert sum(p.is_dir() for p in entries) <= 16
    assert sum(p.is_file() for p in entries) <= 4


def rust_graph() -> dict[str, set[str]]:
    """File -> files it names by `crate::`, `super::` or `self::` paths; child modules are not imports."""
    source = ROOT / "src"
    files = {}
    for file in source.rglob("*.rs"):
        parts = file.relative_to(source).with_suffix("").parts
        if parts[-1] != "tests" and parts != ("lib",):
            files["::".join(parts[:-1] if parts[-1] == "mod" else parts)] = file
    edges: dict[str, set[str]] = {}
    for name, file in files.items():
        text = re.sub(r"//.*", "", file.read_text(encoding="utf-8"))
        text = re.sub(r"#\[cfg\(test\)\]\s*mod \w+ \{.*", "", text, flags=re.S)
        here = name.split("::")
        parent = here[:-1]
        edges[name] = set()
        for path in paths(text):
            head, *rest = path.split("::")
            base = {"crate": [], "super": parent, "self": here}[head]
            while rest and rest[0] == "super":
                base, rest = base[:-1], rest[1:]
            full = [*base, *rest]
            while full and "::".join(full) not in files:
                full.pop()
            target = "::".join(full)
            if target and target != name:
                edges[name].add(target)
    return edges


def paths(text: str) -> list[str]:
    """`crate::a::{b, c::D}` -> crate::a::b, crate::a::c::D."""
    while group := re.search(r"((?:\w+::)+)\{([^{}]*)\}", text):
        names = [f"{group[1]}{name.strip()}" for name in group[2].split(",") if name.strip()]
        text = f"{text[: group.start()]}{', '.join(names)}{text[group.end() :]}"
    return re.findall(r"\b(?:crate|super|self)(?:::\w+)+", text)


def test_the_core_has_no_circle():
    edges = rust_graph()
    assert edges["train"] and not circle(edges) and not circle(rooms(edges, "::"))


def test_circles_and_paths_are_found():
    assert not circle({"a": {"b"}, "b": {"c"}, "c": set()})
    assert set(circle({"a": {"b"}, "b": {"a"}, "c": {"a"}})) == {"a", "b"}
    assert paths("use crate::a::{b, c::{D, e::F}}; self::g::h()") == [
        *("crate::a::b", "crate::a::c::D", "crate::a::c::e::F", "self::g::h")
    ]


def test_one_file_names_the_crates_of_libtorch():
    named = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src").rglob("*.rs")
        if re.search(r"\b(tch|torch_sys|pyo3_tch)\b", re.sub(r"//.*", "", file.read_text(encoding="utf-8")))
    }
    assert named == {"torch.rs"}
