"""Print `api.md`: every public name with the first sentence of its docstring.

python docs/api.py > docs/api.md
"""

import inspect
from pathlib import Path

import bayesify

HEAD = """# Public names

Everything that `import bayesify` gives, by topic. `help(bayesify.fit)` has shapes, units, examples.
"""
PLAIN = {"METHODS": "Methods by the name that the command line uses."}


def page() -> str:
    """The page, with the topics that the comments in `bayesify/__init__.py` name."""
    lines = [HEAD]
    source = Path(bayesify.__file__).read_text()
    for line in source[source.index("_HOME = {") :].splitlines():
        text = line.strip()
        if text.startswith("# "):
            lines += [f"\n## {text[2:].capitalize()}\n", "| name | what it is |", "|---|---|"]
        elif text.startswith('"') and "__version__" not in text:
            name = text.split('"')[1]
            lines.append(f"| `{name}` | {summary(name)} |")
        elif text == "}":
            break
    return "\n".join(lines) + "\n"


def summary(name: str) -> str:
    """The first sentence of a public name's docstring, on one line."""
    text = PLAIN.get(name) or inspect.getdoc(getattr(bayesify, name)) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
