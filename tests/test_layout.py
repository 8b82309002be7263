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
    "types errors options batches isolation casting streams replacing modes frozen checkpointing "
    "cost version loading certifying trunk feature_cache batch_norm calling samplers clones "
    "wrappers single_examples "
    "weights numerics data models",
    "predictive likelihoods priors distributions",
    "forward chunking",
    "posterior objective checks rescaling dropout linearised probit",
    "methods",
    "callbacks rehearsal starting soundness fitting persistence adapters progress streaming "
    "recalibration compression",
    "evaluation",
    "report compare cli __init__ __main__",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}

SPECIALISES = {
    ("bali", "starts"),  # of its members
    ("starts", "fresh"),
    ("bali", "layerwise"),  # its run
    ("bali", "layerwise_options"),
    ("bali", "learnt_layer"),
    ("layerwise", "layerwise_options"),
    ("layerwise", "layerwise_state"),
    ("bali", "layerwise_checks"),
    ("layerwise", "layerwise_checks"),
    ("layerwise_checks", "learnt_layer"),
    ("layerwise_state", "learnt_layer"),
    ("layerwise", "learnt_layer"),
    ("bella", "fresh"),  # new heads
    ("bella", "member_training"),
    ("ensemble", "fresh"),
    ("ensemble", "member_training"),
    ("fine_tuned_ensemble", "fresh"),  # new heads
    ("fine_tuned_ensemble", "member_training"),
    ("laplace", "laplace_torch"),  # what its library is asked for
    ("laplace_torch", "laplace_limits"),
    ("map", "member_training"),  # the ensemble of one
    ("member_training", "interaction"),
    ("svgd", "fresh"),
    ("svgd", "member_training"),
    ("weight_sharing", "diagonal_laplace"),  # the posterior it shares by default
    ("weight_sharing", "codebook"),
    ("weight_sharing", "merging"),
    ("weight_sharing", "sharing"),
    ("weight_sharing", "shared_tuning"),
    ("codebook", "merging"),
    ("codebook", "sharing"),
    ("merging", "sharing"),
    ("shared_tuning", "mean_field_vi"),  # the ELBO, over a book
    ("shared_tuning", "merging"),
    ("shared_tuning", "sharing"),
    ("last_layer_vi", "mean_field_vi"),
    ("stf", "mean_field_vi"),
}
"""Which method may import which: a method knows only what it is a special case of, or starts from.
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
    "errors": "every error is raised in the test of the module that raises it",
    "types": "names only",
    "single_examples": "test_checks.py meets each refusal",
    "version": "a name only",
    "methods.layerwise_state": "test_streaming.py saves a run and goes on",
    "methods.laplace_limits": "methods/test_laplace.py meets each refusal",
    "methods.laplace_torch": "methods/test_laplace.py asks it for known curvature",
    "methods.layerwise_options": "options and numbers; methods/test_bali.py sets them",
    "calling": "test_forward.py, over all that goes through it, and test_isolation.py",
    "callbacks": "a protocol; test_fitting.py has one that watches",
    "methods.layerwise_checks": "methods/test_bali.py meets each refusal",
    "weights.noise_scope": "conformance/test_joint_law.py",
    "distributions.members": "abstract; conformance/test_distributions.py",
    "distributions.base": "abstract; conformance/test_distributions.py",
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


def floor_of(name: str) -> int:
    return FLOOR[name.partition(".")[0]]


def public_objects() -> dict[str, object]:
    return {name: getattr(bayesify, name) for name in bayesify.__all__}


def test_every_module_stands_on_a_floor():
    assert {name.partition(".")[0] for name in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_a_module_imports_nothing_from_a_higher_floor(name):
    higher = {each for each in imports_of(name) if floor_of(each) > floor_of(name)}
    assert not higher, f"{name} (floor {floor_of(name)}) looks up to {higher}"


def test_no_circles():
    graph = {name: imports_of(name) for name in MODULES if name != "__init__"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_the_import_parser_sees_what_is_there():
    assert {"forward", "options", "weights.named"} <= imports_of("fitting")
    assert "evaluation.temperature" in imports_of("__init__")  # under TYPE_CHECKING
    assert "models.cnn" in imports_of("models")


def test_the_report_needs_no_torch_model():
    forbidden = {"models", "methods", "forward", "evaluation", "posterior", "fitting"}
    for name in MODULES:
        if name.startswith("report"):
            assert not forbidden & {each.partition(".")[0] for each in imports_of(name)}, name


def test_methods_know_only_what_they_specialise():
    siblings = {
        (name.removeprefix("methods."), each.removeprefix("methods."))
        for name in MODULES
        if name.startswith("methods.")
        for each in imports_of(name)
        if each.startswith("methods.") and each != "methods.base"
    }
    assert siblings == SPECIALISES


def test_one_module_calls_a_model_with_other_weights():
    called = re.compile(r"functional_call\(|(?<!def )\bvmap\(")
    found = {name for name, path in MODULES.items() if called.search(path.read_text())}
    assert found == {"calling"}


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
    package = path.parts[0]
    mirror = ROOT / "tests" / path.parent / f"test_{path.name}"
    whole = ROOT / "tests" / package / f"test_{package}.py"
    assert path.name in {"__init__.py", "__main__.py"} or mirror.exists() or whole.exists()


def test_each_test_file_mirrors_a_module():
    for path in (ROOT / "tests").rglob("test_*.py"):
        relative = path.relative_to(ROOT / "tests")
        source = SOURCE / relative.parent / path.name.removeprefix("test_")
        package = SOURCE / path.stem.removeprefix("test_") / "__init__.py"
        own = relative.parts[0] in {"conformance", "peers", "test_layout.py"}
        own |= (ROOT / path.stem.removeprefix("test_")).is_dir()  # examples, benchmarks
        assert own or source.exists() or package.exists(), relative


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
