"""The arrows of docs/structure.md: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "provisioner"

# From the ground up. A room may import from its own layer and from those below it.
LAYERS = (
    ("errors",),
    ("units", "models", "clock", "cancel", "resources", "__version__"),
    ("retry", "store", "ci", "times"),
    ("providers", "remote"),
    ("settings", "config_sources", "config", "catalog"),
    ("pipeline", "cleanup", "report"),
    ("cli",),
    ("__main__",),
)
STRANGERS = {("providers", "remote"), ("remote", "providers"), ("pipeline", "config"), ("pipeline", "catalog")}
"""Rooms that could see each other by their layers, and must not."""


def imports(path: Path) -> Iterator[str]:
    """The rooms that a module imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "provisioner":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("provisioner."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("provisioner."))


def arrows() -> dict[tuple[str, str], str]:
    """Each arrow between two rooms, with a module where it can be seen."""
    found: dict[tuple[str, str], str] = {}
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE)
        room = place.parts[0].removesuffix(".py")
        found.update({(room, target): str(place) for target in imports(path) if target != room})
    return found


def test_every_room_is_on_the_map() -> None:
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and next(path.rglob("*.py"), None) is not None)
    }
    known = {room for layer in LAYERS for room in layer}
    assert rooms - known - {"__init__"} == set()


def test_no_arrow_points_upwards() -> None:
    layer_of = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    upwards = {arrow: where for arrow, where in arrows().items() if layer_of[arrow[1]] > layer_of[arrow[0]]}
    assert upwards == {}


def test_strangers_stay_strangers() -> None:
    assert {arrow: where for arrow, where in arrows().items() if arrow in STRANGERS} == {}
