"""Folders that appear whole under their name, and that take the place of an older one.

A folder is written beside its place, under a hidden name, and then changes places with what stands
there, in one step where the system has one (Linux's `renameat2`). Of the older folder only files
that are known to belong to it are deleted: all others, those of the user say, are linked into the
new one before, so that whichever stands under the name is whole and has them all. Where two renames
are needed, a kill between them leaves nothing under the name but the older folder under a hidden
one, from where `recover` brings it back.
"""

import ctypes
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bayesify.core.errors import OptionError

RETIRED = ".old"
_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2


def check_free(path: Path, overwrite: bool, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise `OptionError` unless `path` may be written: nothing is there, or what is ours."""
    recover(path)
    if not path.exists():
        return
    if not overwrite:
        raise OptionError(f"{path} exists already; choose another name or pass overwrite=True.")
    is_empty = path.is_dir() and not any(path.iterdir())
    if not is_empty and not is_ours(path):
        raise OptionError(
            f"{path} holds something else than {what}, which overwrite=True would delete; choose "
            f"another name."
        )


@contextmanager
def appearing(path: Path, owned: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """A fresh folder to write into, which becomes `path` when the block ends well.

    Args:
        path: The folder's name.
        owned: Which files of an older folder are its own, relative to it: these it loses, all
            others it keeps.
    """
    path = path.resolve() if path.is_symlink() else path
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise OptionError(f"cannot write to {path.parent} ({error.strerror}).") from error
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(temporary.stat().st_mode & 0o666)  # safetensors' own are for the owner alone
            _sync(file)
        if path.exists():
            own = {*owned(path)}
            kept = _kept(temporary, path, own)
            retired = _put(temporary, path)
        else:
            own, kept, retired = set(), [], None
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)
    if retired is not None:
        _remove(retired, path, {*own, *kept})


def recover(path: Path) -> None:
    """Bring back a folder that was left under a hidden name when its replacement was killed."""
    if os.path.lexists(path):
        return
    left = [each for each in path.parent.glob(f".{path.name}.*{RETIRED}") if each.is_dir()]
    if left:
        with suppress(OSError):  # somebody else was faster
            max(left, key=lambda each: each.stat().st_mtime_ns).rename(path)


def _kept(temporary: Path, path: Path, own: set[Path]) -> list[Path]:
    """The files of `path` that are not its `own`: they are in `temporary` too when this returns."""
    kept = [file for file in _files(path) if file not in own]
    for file in kept:
        _link(path / file, temporary / file)
    for folder in [temporary, *(each for each in temporary.rglob("*") if each.is_dir())]:
        _sync(folder)
    return kept


def _put(temporary: Path, path: Path) -> Path:
    """Put `temporary` in the place of `path`; returns where that is afterwards."""
    if _exchanged(temporary, path):
        return temporary
    retired = temporary.with_name(temporary.name + RETIRED)
    path.rename(retired)
    try:
        temporary.rename(path)
    except BaseException:
        retired.rename(path)
        raise
    return retired


def _files(folder: Path) -> list[Path]:
    """All files and links, and folders that hold nothing, relative to the folder."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [each for each in folders if (Path(root) / each).is_symlink()]
        empty = [Path(root)] if not folders and not files and Path(root) != folder else []
        found += [Path(root) / each for each in (*links, *files)] + empty
    return [each.relative_to(folder) for each in found]


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise OptionError(f"{source} is in the way of a new file of that name; move it.")
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
        if not target.is_symlink():
            _sync(target)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two folders have changed places, in one step that a kill cannot cut in two."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    names = (os.fsencode(one), os.fsencode(other))
    return bool(exchange) and not exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)


def _remove(retired: Path, path: Path, known: set[Path]) -> None:
    """Delete a folder that was replaced; files that came into it since are moved over."""
    for file in _files(retired):
        place = path / file
        with suppress(OSError):
            if file not in known and not os.path.lexists(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                (retired / file).rename(place)
            elif file in known and not (retired / file).is_dir():
                (retired / file).unlink()
    for root, _, _ in os.walk(retired, topdown=False):
        with suppress(OSError):  # one that holds something still is left where it is
            os.rmdir(root)


def _sync(place: Path) -> None:
    """Until this returns, a loss of power could undo what was written to a file or folder."""
    with suppress(OSError):  # not every system can open a folder
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
