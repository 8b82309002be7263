"""The commands and their flags. What a command does is imported when it is run."""

from importlib import import_module
from typing import Annotated, Any

import typer

from bayesify.cli import flags
from bayesify.cli.flags import DATA, HOW, JUDGE, MODEL, OUTPUT, flag
from bayesify.core.version import __version__
from bayesify.experiments.suite import DEFAULT_METHODS
from bayesify.methods import METHODS

SEVERAL = " Commas between several."

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _bayesify(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Turn any PyTorch network into a Bayesian one, and prove what it is worth.

    Start with [bold]bayesify compare --data digits --out runs/demo[/].
    """
    if version:
        print(f"bayesify {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog="Example: bayesify compare --data digits --seeds 0,1,2 --out runs/demo")
def compare(
    context: typer.Context,
    *,
    data: Annotated[
        str | None,
        flag("--data", help=flags.SOURCES_HELP + SEVERAL + " Default digits.", panel=DATA),
    ] = None,
    models: Annotated[
        str | None, flag("--model", help=flags.MODELS_HELP + SEVERAL, panel=MODEL)
    ] = None,
    methods: Annotated[
        str | None,
        flag(
            "--methods",
            help=f"Some of {', '.join(METHODS)}; +ts adds temperature scaling, as in map+ts; all: "
            f"what suits the model.{SEVERAL} [dim]default {','.join(DEFAULT_METHODS)}[/]",
            panel=HOW,
        ),
    ] = None,
    seeds: Annotated[
        str | None, flag("--seeds", help="Seeds of the fits. [dim]default 0,1,2[/]", panel=HOW)
    ] = None,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of a method or of an aspect, as in stf.temperature=0.1 or "
            "attacks.eps=0.1,0.3; may be repeated.",
            panel=HOW,
            metavar="NAME.OPTION=VALUE",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        flag(
            "--suite",
            help="TOML file that says what to compare; flags win over it.",
            panel=HOW,
            metavar="FILE",
        ),
    ] = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    split: Annotated[
        str | None,
        flag("--split", help="Judge on test; on validation to choose options.", panel=JUDGE),
    ] = None,
    ood: flags.Ood = None,
    evaluate: flags.Evaluate = None,
    gradient_samples: flags.GradientSamples = None,
    num_samples: flags.Samples = None,
    weights: flags.Weights = None,
    data_dir: flags.DataDir = None,
    target: flags.Target = None,
    task: flags.Task = None,
    folds: flags.Folds = None,
    image_size: flags.ImageSize = None,
    split_seed: flags.SplitSeed = None,
    validation_share: flags.ValidationShare = None,
    augment: flags.Augment = None,
    out: Annotated[
        str, flag("--out", help="Folder for results.jsonl and report.html.", panel=OUTPUT)
    ] = "runs/compare",
    fresh: Annotated[
        bool, flag("--fresh", help="Start over; earlier results are moved aside.", panel=OUTPUT)
    ] = False,
    json: flags.AsJson = False,
    print_config: flags.PrintConfig = False,
    debug: flags.Debug = False,
) -> int:
    """Compare methods on the same data: one table, one page of pictures.

    Fits every method with every model, data set, fold and seed, judges each on held-out and on
    foreign data, and measures what it costs; with --evaluate all also under attack, under
    corruption, for what it gives away of its training data, and for what can be guaranteed.
    Finished runs are kept: the same command again does what is missing.
    """
    return _run("comparing:compare", context, arguments=context.obj)


def fit(
    context: typer.Context,
    *,
    method: Annotated[str, flag("--method", help=f"One of {', '.join(METHODS)}.", panel=HOW)],
    source: Annotated[str, flag("--data", help=flags.SOURCES_HELP, panel=DATA)],
    out: Annotated[
        str, flag("--out", help="Folder to save the posterior in.", panel=OUTPUT, metavar="DIR")
    ],
    model: Annotated[str, flag("--model", help=flags.MODELS_HELP, panel=MODEL)] = "mlp",
    seed: Annotated[
        int, flag("--seed", help="Of the initial weights and of the fit.", panel=HOW)
    ] = 0,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of the method inside, as in pretrain.epochs=20; may be repeated.",
            panel=flags.OPTIONS,
            metavar="OPTION=VALUE",
        ),
    ] = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    weights: flags.Weights = None,
    data_dir: flags.DataDir = None,
    target: flags.Target = None,
    task: flags.Task = None,
    fold: flags.Fold = None,
    image_size: flags.ImageSize = None,
    split_seed: flags.SplitSeed = None,
    validation_share: flags.ValidationShare = None,
    augment: flags.Augment = None,
    overwrite: Annotated[
        bool, flag("--overwrite", help="Replace a posterior saved there.", panel=OUTPUT)
    ] = False,
    json: flags.AsJson = False,
    print_config: flags.PrintConfig = False,
    debug: flags.Debug = False,
    **options: Any,
) -> int:
    """Fit one method to one data set and save the posterior, ready for evaluate and predict."""
    return _run("fitting:fit", context)


fit.__signature__ = flags.with_method_flags(fit)  # pyright: ignore[reportFunctionMemberAccess]
app.command(
    epilog="Example: bayesify fit --method stf --model mlp --data digits --epochs 10 --out runs/a"
)(fit)


@app.command(epilog="Example: bayesify evaluate runs/a --split test --ood photos")
def evaluate(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Folder that bayesify fit wrote.", metavar="RUN")],
    *,
    model: flags.OwnModel = None,
    source: Annotated[
        str | None,
        flag(
            "--data",
            help="Other data of the same kind. [dim]default those of the fit[/]",
            panel=DATA,
        ),
    ] = None,
    data_dir: flags.DataDir = None,
    split: Annotated[
        str, flag("--split", help="Part to judge on: test, validation or train.", panel=JUDGE)
    ] = "test",
    ood: flags.Ood = None,
    evaluate: flags.Evaluate = None,
    gradient_samples: flags.GradientSamples = None,
    set: Annotated[
        list[str] | None,
        flag(
            "--set",
            help="An option of an aspect, as in attacks.eps=0.1,0.3; may be repeated.",
            panel=JUDGE,
            metavar="ASPECT.OPTION=VALUE",
        ),
    ] = None,
    transfer_from: flags.TransferFrom = None,
    num_samples: flags.Samples = None,
    device: flags.Device = None,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """Judge a saved posterior: accuracy, calibration, and how well it knows foreign data.

    With --evaluate all also under attack, under corruption, for what it gives away of its training
    data, and for what can be guaranteed. The result is kept in RUN/results.jsonl for the report.
    """
    return _run("judging:evaluate", context, arguments=context.obj)


@app.command(epilog="Example: bayesify predict runs/a new.csv --out predictions.csv")
def predict(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Folder that bayesify fit wrote.", metavar="RUN")],
    inputs: Annotated[
        str,
        typer.Argument(
            help="An .npz file with x, a .csv file with the training columns, an image, or a "
            "folder of images.",
            metavar="INPUT",
        ),
    ],
    *,
    model: flags.OwnModel = None,
    out: Annotated[
        str | None,
        flag(
            "--out", help="CSV file to write. [dim]default print[/]", panel=OUTPUT, metavar="FILE"
        ),
    ] = None,
    num_samples: flags.Samples = None,
    device: flags.Device = None,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """Predict new inputs with a saved posterior, and say how sure it is of each."""
    return _run("predicting:predict", context)


@app.command(epilog="Example: bayesify compress runs/a --codes 64")
def compress(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Folder that bayesify fit wrote.", metavar="RUN")],
    *,
    model: flags.OwnModel = None,
    out: Annotated[
        str | None,
        flag(
            "--out", help="Folder to write. [dim]default RUN-small[/]", panel=OUTPUT, metavar="DIR"
        ),
    ] = None,
    codes: Annotated[
        int, flag("--codes", help="Gaussians that the weights share.", panel=HOW)
    ] = 256,
    outliers: Annotated[
        float,
        flag("--outliers", help="Share of the weights that keep one of their own.", panel=HOW),
    ] = 0.01,
    overwrite: Annotated[
        bool, flag("--overwrite", help="Replace the posterior in DIR.", panel=OUTPUT)
    ] = False,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """Save a fitted posterior again in a fraction of the bytes, by weights that share Gaussians."""
    return _run("compressing:compress", context)


@app.command(epilog="Example: bayesify diagnose runs/a --starts 3 --epochs 10")
def diagnose(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Folder that bayesify fit wrote.", metavar="RUN")],
    *,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    starts: Annotated[int, flag("--starts", help="Retrainings of each layer.", panel=HOW)] = 4,
    epochs: Annotated[int, flag("--epochs", help="Of each retraining.", panel=HOW)] = 20,
    layers: Annotated[
        str | None,
        flag("--layers", help=f"Names of modules.{SEVERAL} [dim]default all[/]", panel=HOW),
    ] = None,
    seed: Annotated[int, flag("--seed", help="Of random starts and batches.", panel=HOW)] = 0,
    device: flags.Device = None,
    out: Annotated[
        str | None,
        flag("--out", help="SVG to write. [dim]default RUN/diagnosis.svg[/]", panel=OUTPUT),
    ] = None,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """Retrain each layer alone, from random starts: which one should be Bayesian?

    The one whose retrainings predict equally well with other weights. JSON goes beside the SVG.
    """
    return _run("diagnosing:diagnose", context)


@app.command(epilog="Example: bayesify report runs/a runs/b --out report.html")
def report(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(help="Folders of results.jsonl, or such files.", metavar="PATH..."),
    ],
    *,
    out: Annotated[
        str | None,
        flag(
            "--out",
            "-o",
            help="Page to write. [dim]default report.html in the folder, where it is one[/]",
            panel=OUTPUT,
            metavar="FILE",
        ),
    ] = None,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """Make a page of the results of bayesify compare and evaluate, and show their tables.

    Runs of several folders are joined; each table is also written as CSV and JSON beside the page.
    """
    return _run("showing:report", context)


@app.command(epilog="Example: bayesify data --data-dir ~/data")
def data(
    context: typer.Context,
    *,
    data_dir: flags.DataDir = None,
    json: flags.AsJson = False,
    debug: flags.Debug = False,
) -> int:
    """List the data sets known by name: where they were found, or how to get them."""
    return _run("listing:data", context)


def _run(task: str, context: typer.Context, **more: Any) -> int:
    """Do what "module:function" says with the values of all flags."""
    module, function = task.split(":")
    values = {name: value for name, value in context.params.items() if name != "debug"}
    return getattr(import_module(f"bayesify.cli.{module}"), function)(**values, **more)
