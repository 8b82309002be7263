import os
import sys
from pathlib import Path

import pytest

from bayesify.core import files as replacing
from bayesify.core.files import appearing, recover

STEPS = {"open", "os.link", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod"}
MINE = {"thesis.txt": "years of work", "notes/a.txt": "more", "results.jsonl": "{}"}


def owned(folder):
    return [Path("q"), Path("manifest")]


def write(path, content):
    with appearing(path, owned) as folder:
        for name in owned(folder):
            (folder / name).write_text(content)


def mine(folder):
    return {name: (folder / name).read_text() for name in MINE}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "saved"
    write(folder, "old")
    (folder / "notes").mkdir()
    for name, text in MINE.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("nowhere")
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """As on Linux, and as where no system call exchanges two folders."""
    if request.param == "two renames":
        monkeypatch.setattr(replacing, "_exchanged", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("no renameat2")


@pytest.mark.usefixtures("way")
def test_only_files_of_its_own_are_replaced(folder):
    (folder / "q").unlink()  # a file that is known to be its own may be missing
    write(folder, "new")
    assert (folder / "q").read_text() == (folder / "manifest").read_text() == "new"
    assert mine(folder) == MINE
    assert (folder / "empty").is_dir()
    assert os.readlink(folder / "link") == "nowhere"
    assert [each.name for each in folder.parent.iterdir()] == ["saved"]


@pytest.mark.usefixtures("way")
def test_killed_at_any_step_nothing_is_lost(folder):
    """Brute force: a child process is killed at the first, the second, ... step that it takes."""
    seen = set()
    for step in range(1000):
        child = os.fork()
        if not child:
            count = 0

            def kill(event, arguments):
                nonlocal count
                count += event in STEPS
                if count > step:  # noqa: B023
                    os._exit(9)

            sys.addaudithook(kill)
            write(folder, "new")
            os._exit(0)
        killed = os.waitpid(child, 0)[1] != 0
        recover(folder)
        contents = {(folder / name).read_text() for name in owned(folder)}
        assert len(contents) == 1
        seen |= contents
        assert mine(folder) == MINE
        if not killed:
            break
        write(folder, "old")
    assert seen == {"old", "new"}
    assert step > 20


@pytest.mark.usefixtures("way")
def test_what_comes_in_the_meantime_moves_over(folder, monkeypatch):
    put = replacing._put

    def late(temporary, path):
        (path / "late.txt").write_text("just in time")
        return put(temporary, path)

    monkeypatch.setattr(replacing, "_put", late)
    write(folder, "new")
    assert (folder / "late.txt").read_text() == "just in time"
    assert mine(folder) == MINE


def test_a_link_to_a_folder_stays_one(folder, tmp_path):
    (tmp_path / "latest").symlink_to("saved")
    write(tmp_path / "latest", "new")
    assert (tmp_path / "latest").is_symlink()
    assert (folder / "q").read_text() == "new"
    assert mine(folder) == MINE
