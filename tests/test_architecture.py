"""Imports point one way, and what belongs to one place occurs in one place."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "easgd_cli"

# From the top, the map of docs/design.md: a module imports from its own room and from lines after its own.
LAYERS = [
    {"__main__"},
    {"python"},
    {"commands"},
    {"sweeps"},
    {"reports", "theory", "bench"},
    {"launcher"},
    {"record"},
    {"training"},
    {"transport", "experiment"},
    {"problems", "models"},
    {"algorithms", "data"},
    {"system"},
    {"settings"},
    {"errors", "order_entry", "randomness", "picture"},
]
ONLY_IN = {
    "hydra": {"commands", "sweeps/hydra_executor.py"},
    "omegaconf": {"commands", "sweeps/hydra_executor.py"},
    "torchvision": {"data/vision.py"},
    "multiprocessing": {
        "launcher", "transport", "system/shared_memory.py", "data/preparation.py", "data/loaders.py", "sweeps"
    },
    "PIL": {"data", "bench"},
    "tensorboard": {"record"},
    "rich": {"record", "commands", "sweeps/view.py"},
    "matplotlib": {"picture.py", "reports", "theory"},
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize(("kinds", "most"), [((ast.FunctionDef, ast.AsyncFunctionDef), 60), ((ast.ClassDef,), 250)])
def test_nothing_is_too_long_to_be_read_at_once(kinds: tuple[type, ...], most: int) -> None:
    for module in MODULES:
        for node in nodes(module):
            if isinstance(node, kinds):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= most, f"{node.name} in {module.relative_to(PACKAGE)} has {lines} lines"


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# Of the launcher's rooms, from the top; what is no room of it stands above or below all of them.
IN_LAUNCHER = [{"hosts"}, {"processes", "virtual"}, {"supervisor"}, {"journal"}]


def test_the_supervisor_knows_neither_processes_nor_the_virtual_clock() -> None:
    for path in (PACKAGE / "launcher").rglob("*/*.py"):
        own = path.parent.name
        mine = next((i for i, rooms in enumerate(IN_LAUNCHER) if own in rooms), None)
        assert mine is not None, f"launcher/{own} has no row in IN_LAUNCHER"
        for name in imports(path):
            parts = name.split(".")
            theirs = next((i for i, rooms in enumerate(IN_LAUNCHER) if parts[2:] and parts[2] in rooms), None)
            if parts[:2] == ["easgd_cli", "launcher"] and theirs is not None and parts[2] != own:
                assert theirs > mine, f"launcher/{own}/{path.name} imports {name}, which does not lie below it"


def layer(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    inside = path.relative_to(PACKAGE)
    own = inside.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    mine = layer(own)
    assert mine is not None, f"{own} has no place in the layers"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "easgd_cli" and len(parts) > 1 and (theirs := layer(parts[1])) is not None:
            assert theirs > mine or parts[1] == own, f"{inside} imports {name}, which does not lie below it"
        allowed = ONLY_IN.get(parts[0])
        assert allowed is None or any(str(inside) == a or inside.parts[0] == a for a in allowed), (
            f"{inside} imports {name}"
        )


DISTRIBUTED = (
    "transport/collective.py", "transport/meeting.py", "training/data_parallel.py", "training/peers.py",
    "launcher/hosts/world.py", "launcher/hosts/measured_gloo.py",
)  # fmt: skip


def test_torch_distributed_is_used_by_collectives_its_own_loops_and_to_say_where_a_run_is_only() -> None:
    for path in MODULES:
        inside = str(path.relative_to(PACKAGE))
        if inside not in DISTRIBUTED:
            used = {n for n in imports(path) if n.startswith(("torch.distributed", "torch.nn.parallel"))}
            assert not used and not re.search(r"torch\.distributed\.\w", path.read_text()), f"{inside} uses it"


def test_a_problem_is_known_by_its_members_only() -> None:
    """Workers, evaluator, launcher and record see what problems/base.py says; which problem it is stands in the
    settings.
    """
    for path in MODULES:
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] not in ("problems", "bench", "theory"):
            taken = {name.split(".")[2] for name in imports(path) if name.startswith("easgd_cli.problems.")}
            known = {"base", "flat", "precision", "metric", "classification"}
            assert taken <= known | ({"tasks"} if inside.parts[0] == "experiment" else set()), f"{inside}: {taken}"


def test_a_tasks_name_occurs_in_its_own_file_and_where_data_choose_it() -> None:
    """Which task it is stands in the settings; a net on data knows classification by its confusion counts."""
    for path in MODULES:
        inside = path.relative_to(PACKAGE)
        if inside.parts[:2] != ("problems", "tasks"):
            taken = {name.split(".")[3] for name in imports(path) if name.startswith("easgd_cli.problems.tasks.")}
            allowed = {
                "problems/net.py": {"base", "classification", "by_data"},
                "experiment/problems.py": {"base", "own"},
            }
            assert taken <= allowed.get(str(inside), set()), f"{inside} imports {taken}"


def test_a_methods_name_occurs_in_its_own_file_and_one_import_line() -> None:
    for method in ("EASGD", "EAMSGD", "DOWNPOUR", "MDOWNPOUR", "MSGD"):
        for path in MODULES:
            inside = path.relative_to(PACKAGE)
            if inside.parts[0] in ("algorithms", "bench", "theory"):  # the last two are about particular methods
                continue
            code = nodes(path)
            names = {node.id for node in code if isinstance(node, ast.Name)} | {
                node.attr for node in code if isinstance(node, ast.Attribute)
            }
            texts = {
                node.value
                for node in code
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 12
            }
            # easgd is the program, too
            assert method not in names and (method == "EASGD" or method.lower() not in texts), (
                f"{inside} knows {method}"
            )
