"""`results.jsonl`: one line a finished cell, on disk before the next cell begins.

Published numbers have lines of their own, one for each method and data set.
"""

import json
import os
import tempfile
from itertools import count
from pathlib import Path

from bayesify.core.errors import OptionError
from bayesify.experiments.report.records import Record, read

FILE = "results.jsonl"


class Results:
    """The results in one folder.

    Args:
        folder: It is made if it is missing.

    Raises:
        OptionError: nothing can be written there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            if self.file.exists():
                self.file.open("ab").close()
        except OSError as error:
            raise OptionError(
                f"cannot write to {folder} ({error.strerror}); choose another folder."
            ) from error

    def start_over(self) -> Path | None:
        """Move the results aside; returns where to, or None when there are none."""
        return set_aside(self.folder)

    def repair(self) -> bool:
        """Cut off a last line that a crash left unfinished; returns whether there was one.

        A line is written with its end in one go, so one without an end is unfinished.
        """
        if not self.file.exists():
            return False
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return False
        if _is_record(content[whole:]):  # only its end is missing, as editors leave it
            with self.file.open("ab") as stream:
                stream.write(b"\n")
            return False
        os.truncate(self.file, whole)
        return True

    def records(self) -> list[Record]:
        """All records so far."""
        empty = not self.file.exists() or not self.file.stat().st_size
        return [] if empty else read(self.file)

    def append(self, record: Record) -> None:
        """Write one record; it is on disk when this returns."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self.file.open("ab") as stream:
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())


def set_aside(folder: Path) -> Path | None:
    """Give results in `folder` a name of their own beside it; returns that, None for no results."""
    file = folder / FILE
    if not file.exists():
        return None
    taken = (file.with_name(f"{FILE}.old{number or ''}") for number in count())
    return file.rename(next(each for each in taken if not each.exists()))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
