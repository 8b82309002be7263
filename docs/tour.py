"""Print the picture of `tour.md`: the rooms of the house, by floors, from the code's own imports.

python docs/tour.py
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import bayesify

SOURCE = Path(bayesify.__file__).parent


def rooms() -> dict[str, set[str]]:
    """Every room and those that it imports from."""
    names = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
    found: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for path in (SOURCE / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bayesify."):
                    found[name].add(str(node.module).split(".")[1])
        found[name].discard(name)
    return found


def picture() -> str:
    """A line for every room under the rooms that import it; a floor stands on what it imports."""
    graph, floor = rooms(), dict[str, int]()
    for name in TopologicalSorter(graph).static_order():
        floor[name] = 1 + max((floor[each] for each in graph[name]), default=0)
    lines = []
    for number in range(max(floor.values()), 0, -1):
        for name in sorted(each for each in floor if floor[each] == number):
            doc = ast.get_docstring(ast.parse((SOURCE / name / "__init__.py").read_text())) or ""
            lines.append(
                f"{number:>2}  {name:<14}{' '.join(doc.split()).split('. ')[0].rstrip('.')}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(picture())
