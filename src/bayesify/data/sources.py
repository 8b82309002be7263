"""The data sets known by name: what they are, who reads them, where they lie, how to get them.

Files are looked for in `data_dir`, then in the folder that $BAYESIFY_DATA names, then where a
system package puts them; each also with the usual sub-folders.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from bayesify.core.errors import DataError

ENVIRONMENT = "BAYESIFY_DATA"

_IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class Source:
    """One data set.

    Args:
        about: One line for people.
        reader: "module:function", imported only when it is asked for.
        files: All of them lie in one folder, plain or with `.gz`; () if a package brings the data.
        subfolders: Usual names of that folder, below the places searched.
        packaged: Where a system package puts it.
        how: How to get it.
        labelled: Whether it can be learnt from; otherwise it serves as foreign data only.
    """

    about: str
    reader: str
    files: tuple[str, ...] = ()
    subfolders: tuple[str, ...] = ()
    packaged: tuple[str, ...] = ()
    how: str = "comes with scikit-learn"
    labelled: bool = True


SOURCES: dict[str, Source] = {
    "digits": Source(
        about="handwritten digits: 1,797 grey images 8x8, 10 classes",
        reader="bayesify.data.readers.digits:read",
    ),
    "mnist": Source(
        about="handwritten digits: 70,000 grey images 28x28, 10 classes",
        reader="bayesify.data.readers.idx:read_mnist",
        files=_IDX,
        subfolders=("mnist", "MNIST/raw"),
        how="put the four IDX files (train-images-idx3-ubyte.gz and so on) into one folder",
    ),
    "fashion-mnist": Source(
        about="clothes: 70,000 grey images 28x28, 10 classes",
        reader="bayesify.data.readers.idx:read_fashion",
        files=_IDX,
        subfolders=("fashion-mnist", "FashionMNIST/raw"),
        packaged=("/usr/share/datasets/fashion-mnist",),
        how="apt-get install dataset-fashion-mnist",
    ),
    "cifar10": Source(
        about="objects: 60,000 colour images 32x32, 10 classes",
        reader="bayesify.data.readers.cifar:read",
        files=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
        subfolders=("cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py"),
        how="unpack the python version of the CIFAR-10 archive (cifar-10-python.tar.gz)",
    ),
    "photos": Source(
        about="foreign data of any image shape: 1,000 patches of two photographs",
        reader="bayesify.data.readers.photos:patches",
        labelled=False,
    ),
}

KINDS: dict[str, str] = {
    ".npz": "bayesify.data.readers.npz:read",
    ".csv": "bayesify.data.readers.table:read",
    "": "bayesify.data.readers.folder:read",
}
"""Who reads the user's own data, by the ending of the path; "" is a folder."""


def locate(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder that holds all files of the source `name`; None if no place does."""
    files = SOURCES[name].files
    for place in places(name, data_dir):
        if all(present(place, file) for file in files):
            return place
    return None


def present(folder: Path, file: str) -> Path | None:
    """`file` in `folder`, plain or gzipped; None if neither is there."""
    for candidate in (folder / file, folder / f"{file}.gz"):
        if candidate.is_file():
            return candidate
    return None


def places(name: str, data_dir: str | Path | None = None) -> list[Path]:
    """Where the source `name` is looked for, in order."""
    source = SOURCES[name]
    below = [root / sub for root in roots(data_dir) for sub in ("", *source.subfolders)]
    return below + [Path(folder) for folder in source.packaged]


def roots(data_dir: str | Path | None = None) -> list[Path]:
    """The folders that the user named: `data_dir` and $BAYESIFY_DATA."""
    named = (data_dir, os.environ.get(ENVIRONMENT))
    return [Path(each).expanduser() for each in named if each]


def find_path(source: str, data_dir: str | Path | None = None) -> Path:
    """The user's own file or folder `source`: as given, or below one of the `roots`.

    Raises:
        DataError: There is none; the message knows similar names of known sets.
    """
    for root in (Path(), *roots(data_dir)):
        path = root / Path(source).expanduser()
        if path.is_file() or path.is_dir():
            return path
    near = difflib.get_close_matches(source.lower(), SOURCES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "check the name, or pass data_dir."
    raise DataError(
        f"unknown data source {source!r}: expected one of {', '.join(SOURCES)}, or the path of an "
        f".npz or .csv file or of a folder of images that exists; {hint}"
    )


def missing(name: str, data_dir: str | Path | None = None) -> DataError:
    """The error that says where `name` was looked for and how to get it."""
    searched = ", ".join(str(place) for place in places(name, data_dir)) or "no folder"
    return DataError(
        f"{name}: expected {', '.join(SOURCES[name].files)} (plain or .gz) in one folder, looked "
        f"in {searched}; to get them: {SOURCES[name].how}, and name the folder with data_dir or "
        f"${ENVIRONMENT}."
    )
