"""The rules of the code's layout: which module may import, print or change what.

Each rule is tried on a piece of code that breaks it, too, so that a check that finds nothing is known to look.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cfs_tags"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
LIBRARY = [name for name in MODULES if not name.startswith(("cfs_tags/cli/", "cfs_tags/__main__"))]

TOOLKIT = {"typer", "rich", "click"}
CONSOLE = {"print", "input", "exit", "quit"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "get_exec_path"}
EXITS = {"os._exit", "os.abort", "sys.exit"}
STREAMS = {"sys.stdout", "sys.stderr", "sys.stdin", "sys.argv"}

OS_CHANGES = {
    *("chmod", "chown", "fchmod", "fchown", "lchmod", "lchown", "utime", "setxattr", "removexattr"),
    *("link", "symlink", "mkdir", "makedirs", "mkfifo", "mknod"),
    *("rename", "renames", "replace", "remove", "unlink", "rmdir", "removedirs"),
    *("truncate", "ftruncate", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "splice"),
    *("fsync", "fdatasync", "sync", "posix_fallocate"),
}
OS_WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE", "O_EXCL"}
PATH_CHANGES = {
    *("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "mkdir", "rmdir", "unlink"),
    *("chmod", "lchmod", "renameat2", "syncfs"),
}
WRITING_MODULES = {"shutil", "tempfile"}

# what stands in one module alone: the name that it has there is what others use
HOMES = {
    "cfs_tags/formats/boot/paths.py": (
        *("localhost/bootc-", "bootc_composefs-", "state/deploy", "state/boot", "loader/entries", "loader/addons", "EFI/Linux"),
        *("user.cfg", "grub.cfg", "grubenv", "staged-deployment", ".origin", ".imginfo", "/sysroot"),
    ),
    "cfs_tags/values.py": ("oci-manifest-", "oci-config-", "oci-layer-", "oci-blob-", "cfs-tags-kept-"),
    "cfs_tags/formats/oci.py": ("application/vnd.", "org.opencontainers.", "io.containerd."),
    "cfs_tags/repo/layout.py": ("streams/refs", "images/refs", "oci-referrers"),
    "cfs_tags/repo/images.py": ("composefs.image",),
}
# the operations that tests stop and let fail
FOR_TESTS = {"cfs_tags/repo/fsops.py: MUTATING"}
OTHER_WORDS = ("cfs-tags.manifest.original",)

Finder = Callable[[ast.Module], Iterator[tuple[int, str]]]


@lru_cache(1)
def nodes(code: ast.Module) -> list[ast.AST]:
    """Those of one module at a time: later tests of this process fork it, and want it small."""
    return list(ast.walk(code))


def imports(code: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of everything that is imported anywhere in the module, at the top or in a function."""
    for node in nodes(code):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


def attributes(code: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every ``module.name``."""
    for node in nodes(code):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def talks_or_exits(code: ast.Module) -> Iterator[tuple[int, str]]:
    """What only the command line may do: print, exit, read the environment, use its toolkit.

    ``os._exit`` where there is ``os.fork`` ends the child, not the program.
    """
    forks = any(text == "os.fork" for _, text in attributes(code))
    for node in nodes(code):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONSOLE:
            yield node.lineno, f"{node.func.id}()"
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id == "SystemExit":
                yield node.lineno, "raise SystemExit"
    for line, text in attributes(code):
        owner, _, name = text.partition(".")
        if text == "os._exit" and forks:
            continue
        if text in EXITS or text in STREAMS or (owner == "os" and name in ENVIRONMENT):
            yield line, text
    for line, module, name in imports(code):
        top = module.partition(".")[0]
        if top in TOOLKIT or (top == "os" and name in ENVIRONMENT) or (top, name) == ("sys", "exit"):
            yield line, f"import {module} {name}".rstrip()


def changes_the_disk(code: ast.Module) -> Iterator[tuple[int, str]]:
    """What only ``fsops`` may do: every way to change a file system."""
    for line, text in attributes(code):
        owner, _, name = text.partition(".")
        if owner == "os" and (name in OS_CHANGES or name in OS_WRITING_FLAGS):
            yield line, text
    for line, module, name in imports(code):
        if module.partition(".")[0] in WRITING_MODULES or (module == "os" and name in OS_CHANGES | OS_WRITING_FLAGS):
            yield line, f"import {module} {name}".rstrip()
    for node in nodes(code):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and not _is_fsops(node.func.value) and node.func.attr in PATH_CHANGES:
            yield node.lineno, f".{node.func.attr}()"
        if _writing_mode(node):
            yield node.lineno, "open() for writing"


def _is_fsops(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "fsops"


def _writing_mode(call: ast.Call) -> bool:
    """Whether this is ``open(file, mode)`` or ``path.open(mode)`` with a mode that writes; ``os.fdopen`` opens nothing."""
    match call.func:
        case ast.Name(id="open") | ast.Attribute(value=ast.Name(id="os" | "io"), attr="open"):
            place = 1
        case ast.Attribute(attr="open"):
            place = 0
        case _:
            return False
    modes = [*call.args[place : place + 1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(text) & set("wax+") for text in texts)


def imports_an_operation(code: ast.Module) -> Iterator[tuple[int, str]]:
    """Operations are called as ``fsops.name``: one imported by name could not be interrupted by tests."""
    for line, module, name in imports(code):
        if module == "cfs_tags.repo.fsops" and name.islower():
            yield line, f"from {module} import {name}"


def texts(code: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every piece of text that is a word: no documentation, no sentence."""
    said = {id(node.value) for node in nodes(code) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    for node in nodes(code):
        if isinstance(node, ast.Constant) and id(node) not in said:
            text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
            if isinstance(text, str) and not any(character.isspace() for character in text.strip()):
                yield node.lineno, text


def at_home(home: str | None) -> Finder:
    """Finds words whose home is another module."""

    def rule(code: ast.Module) -> Iterator[tuple[int, str]]:
        foreign = [word for path, words in HOMES.items() if path != home for word in words]
        for line, text in texts(code):
            plain = text.replace("\\.", ".").replace("%2F", "/")
            if plain not in OTHER_WORDS and any(word in plain for word in foreign):
                yield line, repr(text)

    return rule


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def public_names(code: ast.Module) -> Iterator[str]:
    """Functions, classes and values of a module whose names do not start with an underscore."""
    for node in code.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case ast.Assign(targets=targets):
                names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            case _:
                continue
        yield from (name for name in names if not name.startswith("_"))


def own_uses(code: ast.Module) -> set[str]:
    """Names that a module reads."""
    return {node.id for node in nodes(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def uses(code: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of what a module takes from others: imported, or as an attribute of a module."""
    modules: dict[str, set[str]] = {}
    for _, module, name in imports(code):
        yield module, name
        modules.setdefault(name or module, set()).add(f"{module}.{name}" if name else module)
    for node in nodes(code):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                modules.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
    for node in nodes(code):
        if isinstance(node, ast.Attribute) and (owner := chain(node.value)):
            for module in (owner, *modules.get(owner, ())):
                yield module, node.attr


def chain(node: ast.expr) -> str:
    """The text of a name, or of names with points between them; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    owner = chain(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{owner}.{node.attr}" if owner and isinstance(node, ast.Attribute) else ""


def annotated(code: ast.Module) -> set[str]:
    """Names in annotations: what functions take and give, and what values hold."""
    found: set[str] = set()
    for node in nodes(code):
        for place in ("annotation", "returns"):
            annotation = getattr(node, place, None)
            if isinstance(annotation, ast.expr):
                found.update(re.findall(r"\w+", ast.unparse(annotation)))
    return found


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def findings(rule: Finder, path: str) -> list[str]:
    return [f"{path}:{line}: {what}" for line, what in sorted(rule(parsed(path)))]


@pytest.mark.parametrize("path", LIBRARY)
def test_only_the_command_line_prints_exits_or_reads_the_environment(path: str) -> None:
    assert findings(talks_or_exits, path) == []


@pytest.mark.parametrize("path", MODULES)
def test_a_path_a_prefix_and_a_media_type_are_written_once(path: str) -> None:
    assert findings(at_home(path), path) == []


@pytest.mark.parametrize("path", HOMES)
def test_what_has_a_home_is_there(path: str) -> None:
    found = [text for _, text in texts(parsed(path))]

    assert [word for word in HOMES[path] if not any(word in text for text in found)] == []


def test_a_public_name_is_used_by_another_module_or_documented() -> None:
    """Or it is the type of something that is. A test may look at what its module uses itself, and needs nothing made for it."""
    known = set(re.findall(r"\w+", (ROOT / "docs/python.md").read_text() + (ROOT / "README.md").read_text()))
    used: set[tuple[str, str]] = set()
    public: list[tuple[str, str, bool]] = []
    for path in MODULES:
        code = parsed(path)
        used.update((module, name) for module, name in uses(code) if module != dotted(path))
        known |= annotated(code)
        own = own_uses(code)
        public += [(path, name, name in own) for name in public_names(code)]
    for example in (ROOT / "examples").glob("*.py"):
        used.update(uses(parsed(str(example))))
    tests = (path for folder in ("tests", "bench", "scripts") for path in (ROOT / folder).rglob("*.py"))
    looked_at = {use for path in tests for use in uses(parsed(str(path)))}

    unused = [
        f"{path}: {name}"
        for path, name, is_used_here in public
        if (dotted(path), name) not in used and name not in known and not (is_used_here and (dotted(path), name) in looked_at)
    ]

    assert set(unused) - FOR_TESTS == set()


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("from cfs_tags.x import y", ("cfs_tags.x", "y")),
        ("from cfs_tags import x\nx.y()", ("cfs_tags.x", "y")),
        ("from cfs_tags import x as z\nz.y()", ("cfs_tags.x", "y")),
        ("def f():\n    import cfs_tags.x\n    return cfs_tags.x.y", ("cfs_tags.x", "y")),
    ],
)
def test_each_way_to_use_a_name_is_seen(code: str, used: tuple[str, str]) -> None:
    assert used in set(uses(ast.parse(code)))
    assert own_uses(ast.parse("a = b")) == {"b"}
    public = "A = 1\nB: int = 2\n_C = 3\ndef f(): ...\ndef _g(): ...\nclass D: ..."
    assert list(public_names(ast.parse(public))) == ["A", "B", "f", "D"]
    assert annotated(ast.parse("def f(a: A) -> list[B]: ...")) == {"A", "list", "B"}


@pytest.mark.parametrize("path", [name for name in MODULES if name != "cfs_tags/repo/fsops.py"])
def test_only_fsops_changes_the_disk(path: str) -> None:
    assert findings(changes_the_disk, path) == []


@pytest.mark.parametrize("path", MODULES)
def test_operations_are_called_through_their_module(path: str) -> None:
    assert findings(imports_an_operation, path) == []


def test_every_public_function_of_fsops_that_changes_the_disk_can_be_interrupted() -> None:
    from cfs_tags.repo import fsops

    code = ast.parse((PACKAGE / "repo" / "fsops.py").read_text())
    functions = {node.name: node for node in code.body if isinstance(node, ast.FunctionDef)}
    public = {name for name in functions if not name.startswith("_")}

    assert set(fsops.MUTATING) <= public
    for name in public - set(fsops.MUTATING):
        inner = ast.Module(body=[functions[name]], type_ignores=[])
        assert list(changes_the_disk(inner)) == [], name


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (talks_or_exits, "print('x')"),
        (talks_or_exits, "import sys\ndef f():\n    sys.exit(1)"),
        (talks_or_exits, "raise SystemExit(2)"),
        (talks_or_exits, "import os\nos._exit(1)"),
        (talks_or_exits, "import os\nhome = os.environ['HOME']"),
        (talks_or_exits, "from os import getenv"),
        (talks_or_exits, "def f():\n    import rich.table"),
        (talks_or_exits, "import sys\nsys.stdout.write('x')"),
        (changes_the_disk, "import os\nos.symlink('a', 'b')"),
        (changes_the_disk, "import os\nos.open('a', os.O_RDONLY | os.O_CREAT)"),
        (changes_the_disk, "open('a', 'w')"),
        (changes_the_disk, "path.open('ab')"),
        (changes_the_disk, "path.write_text('x')"),
        (changes_the_disk, "import tempfile"),
        (changes_the_disk, "libc.renameat2(1, b'a', 1, b'b', 2)"),
        (imports_an_operation, "from cfs_tags.repo.fsops import rename"),
        (at_home(None), "path = f'{root}/state/deploy/{name}'"),
        (at_home(None), "known = name.startswith('oci-manifest-')"),
        (at_home(None), "re.compile(r'x/\\1\\.origin')"),
        (at_home(None), "tag = 'localhost%2Fbootc-sha256:'"),
        (at_home(None), "kind = b'application/vnd.oci.image.layer.v1.tar'"),
        (at_home("cfs_tags/values.py"), "a, b = 'oci-layer-', 'streams/refs/oci'"),
    ],
)
def test_each_rule_finds_what_breaks_it(rule: Finder, code: str) -> None:
    assert len(list(rule(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.open('a', os.O_RDONLY | os.O_CLOEXEC)",
        "open('a')",
        "open('a', 'rb')",
        "fsops.rename(fd, 'a', 'b')",
    ],
)
def test_reading_breaks_no_rule(code: str) -> None:
    assert list(changes_the_disk(ast.parse(code))) == []


def test_a_module_imports_lower_layers_only() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [sys.executable, linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_drawing_has_the_layers_of_the_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["id"] == "layers"]
    names = [set(re.findall(r"\w+", layer)) for layer in layers if "__main__" not in layer]
    drawing = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    drawn = [set(re.split(r" {3,}", line.strip())[0].split()) for line in drawing.splitlines() if line.strip(" |")]
    every = set.union(*names)
    assert [row for row in drawn if row <= every] == names


def test_every_test_that_holds_an_invariant_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)`", (ROOT / "docs/invariants.md").read_text())

    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).is_file()] == []
