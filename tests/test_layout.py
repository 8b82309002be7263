import ast
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import bayesify
from bayesify.likelihoods.predictive import mixture_log_prob

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bayesify"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

FLOORS = [
    "core",
    "numerics tracing models",
    "weights likelihoods",
    "distributions data",
    "forward",
    "posteriors",
    "training",
    "methods integrations",
    "evaluation",
    "experiments",
    "cli",
]
"""The rooms of the house. Each stands above all that it imports."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
ROOMS, ARROWS = 20, 115
"""At most so many, counted with the package itself, and as pairs of rooms."""

SPECIALISES = {
    ("bali", "members"),  # of its members' starts
    ("laplace", "members"),  # the network it begins at, by default
    ("mc_dropout", "members"),
    ("sharing", "laplace"),  # the posterior it shares by default
    ("sharing", "members"),
    ("sharing", "vi"),  # the ELBO, over a book
    ("swag", "members"),
    ("vi", "members"),
}
"""Which family of methods may import which: it knows only what it is a special case of, or starts
from.
"""

HEAVY = [
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "rich",
    "typer",
    "torchmetrics",
    "jinja2",
    "PIL",
    "torchvision",
    "laplace",
]

COVERED_ELSEWHERE = {
    "core.errors": "every error is raised in the test of the module that raises it",
    "core.types": "names only",
    "core.version": "a name only",
    "forward.calling": "forward/test_outputs.py, over all that goes through it",
    "methods.bali.checks": "methods/bali/test_layerwise_inference.py meets each refusal",
    "methods.bali.options": "options and numbers; the same file sets them",
    "methods.bali.state": "training/test_streaming.py saves a run and goes on",
    "methods.laplace.curvature": "methods/laplace/test_structured.py asks it for known curvature",
    "methods.laplace.limits": "methods/laplace/test_structured.py meets each refusal",
    "training.callbacks": "a protocol; training/test_fit.py has one that watches",
    "training.method": "abstract; conformance/test_methods.py",
    "training.problem": "what methods are given; training/test_fit.py looks at it",
    "training.single_examples": "training/test_checks.py meets each refusal",
    "weights.noise_scope": "conformance/test_joint_law.py",
}
"""Modules without a test file of their own. Packages may have one for all: tests/x/test_x.py."""

WITHOUT_EXAMPLE = {
    *("Evaluation", "FitRecord", "Problem", "ProgressBar"),  # records, and what draws
    *("Certificate", "Diagnosis"),  # `certify` and `diagnose` show them
    *("save", "load", "evaluate", "temperature_scaled"),  # shown in the README
    *("elbo_terms", "member_losses"),  # `negative_elbo` shows how
}


def imports_of(name: str) -> set[str]:
    """The modules of bayesify that `name` imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [each for each in submodules if each.removeprefix("bayesify.") in MODULES]
            targets = known if len(known) == len(submodules) else [str(node.module), *known]
        else:
            continue
        found |= {each.removeprefix("bayesify.") for each in targets if each in ours()}
    return found - {name}


def ours() -> set[str]:
    return {f"bayesify.{name}" for name in MODULES}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Between rooms; the package itself only hands names on."""
    pairs = {
        (room_of(n), room_of(each)) for n in MODULES if n != "__init__" for each in imports_of(n)
    }
    return {(a, b) for a, b in pairs if a != b and b != "__init__"}


def public_objects() -> dict[str, object]:
    return {name: getattr(bayesify, name) for name in bayesify.__all__}


def test_every_module_stands_in_a_room():
    assert {room_of(name) for name in MODULES} - {"__init__"} == set(FLOOR)


def test_the_picture_of_the_tour_is_that_of_the_code():
    code = [sys.executable, str(ROOT / "docs" / "tour.py")]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "docs" / "tour.md").read_text()


def test_no_room_looks_up():
    assert {(a, b) for a, b in arrows() if FLOOR[b] >= FLOOR[a]} == set()


def test_the_house_stays_small():
    assert len(FLOOR) + 1 <= ROOMS
    assert len(arrows()) <= ARROWS


def test_no_circles():
    graph = {name: imports_of(name) for name in MODULES if name != "__init__"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_the_import_parser_sees_what_is_there():
    assert {"training.starting", "core.options", "weights.named"} <= imports_of("training.fit")
    assert "evaluation.temperature" in imports_of("__init__")  # under TYPE_CHECKING
    assert "models.cnn" in imports_of("models")


def test_the_report_needs_no_torch_model():
    for name in MODULES:
        if name.startswith("experiments.report"):
            own = {each for each in imports_of(name) if not each.startswith("experiments.report")}
            assert {room_of(each) for each in own} <= {"core"}, name


def test_families_of_methods_know_only_what_they_specialise():
    families = {
        (name.split(".")[1], each.split(".")[1])
        for name in MODULES
        if name.startswith("methods.")
        for each in imports_of(name)
        if each.startswith("methods.")
    }
    assert {(a, b) for a, b in families if a != b} == SPECIALISES


def test_one_module_calls_a_model_with_other_weights():
    called = re.compile(r"functional_call\(|(?<!def )\bvmap\(")
    found = {name for name, path in MODULES.items() if called.search(path.read_text())}
    assert found == {"forward.calling"}


@pytest.mark.parametrize("name", MODULES)
def test_a_file_has_one_idea(name):
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))
    assert name.rpartition(".")[2] not in {"utils", "util", "helpers", "common", "misc"}


def test_public_names_exist_once_and_are_all_listed():
    assert len(set(bayesify.__all__)) == len(bayesify.__all__)
    assert all(value is not None for value in public_objects().values())
    nodes = ast.walk(ast.parse(MODULES["__init__"].read_text()))
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bayesify")
        for alias in node.names
    }
    assert imported == set(bayesify.__all__)


def test_public_names_are_those_of_the_documentation():
    listed = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(bayesify.__all__) - {"__version__"})


@pytest.mark.parametrize("name", [each for each in bayesify.__all__ if each != "__version__"])
def test_a_public_name_is_documented(name):
    value = public_objects()[name]
    own = inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)
    doc = inspect.getdoc(value if own else type(value)) or ""
    assert doc.strip()
    main = (inspect.isclass(value) or callable(value)) and not (
        inspect.isabstract(value)
        or getattr(value, "_is_protocol", False)
        or (inspect.isclass(value) and issubclass(value, Exception))
        or name in WITHOUT_EXAMPLE
    )
    assert not main or ">>>" in doc, f"{name} shows no Example"


def test_importing_bayesify_loads_torch_numpy_and_safetensors_only():
    code = f"import bayesify, sys; print(*[x for x in {HEAVY} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_names_that_come_later_are_really_loaded_later():
    code = (
        "import bayesify, sys; early = 'bayesify.evaluation.evaluate' in sys.modules;"
        "bayesify.evaluate; print(early, 'bayesify.evaluation.evaluate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = bayesify.fitt


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(COVERED_ELSEWHERE)))
def test_each_module_has_a_test_of_the_same_path(name):
    path = MODULES[name].relative_to(SOURCE)
    folders = [path.parent, *path.parent.parents][:-1]
    mirror = ROOT / "tests" / path.parent / f"test_{path.name}"
    whole = [ROOT / "tests" / each / f"test_{each.name}.py" for each in folders]
    assert path.name == "__init__.py" or mirror.exists() or any(each.exists() for each in whole)


def test_each_test_file_mirrors_a_module():
    for path in (ROOT / "tests").rglob("test_*.py"):
        relative = path.relative_to(ROOT / "tests")
        source = SOURCE / relative.parent / path.name.removeprefix("test_")
        own = relative.parts[0] in {"conformance", "peers", "test_layout.py"}
        own |= (ROOT / path.stem.removeprefix("test_")).is_dir()  # examples, benchmarks
        package = SOURCE / relative.parent
        own |= path.stem == f"test_{package.name}" and package.is_dir()
        assert own or source.exists(), relative


def test_no_path_of_a_machine_is_tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(rb"(?<![\w.:/])/(?:work|home|root|Users|mnt)/\w")
    found = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file() and machine.search((ROOT / name).read_bytes())
    ]
    assert found == []


def test_the_shapes_in_signatures_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError, match="samples \\*batch"):
        mixture_log_prob(torch.ones(2, 3, dtype=torch.int64))
