"""A file is written whole or not at all, and a lock excludes whatever happens to its file."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.files import check_output, locked, write_atomically


def test_folders_are_made_and_content_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("place", "function"), [(os, "fsync"), (Path, "replace")])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, place, function):
    """Guards against writing to the file itself, and against a partial file left after a full disk."""
    path = tmp_path / "page.html"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, function, fail)
    with pytest.raises(UserError, match=r"page\.html: No space left on device") as error:
        write_atomically(path, b"new")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_is_named_with_what_to_do(tmp_path):
    """And not a partial file, which the user never gave; nor is there a lack of room or permission."""
    (tmp_path / "plots").write_text("")
    for name in ("loss.png", "a/loss.png"):
        with pytest.raises(UserError, match=r"png: /.*/plots is a file and no folder; move it away$"):
            write_atomically(tmp_path / "plots" / name, b"")
    with pytest.raises(UserError, match=f"{tmp_path}: Is a directory; move it away"):
        write_atomically(tmp_path, b"")


def test_a_page_takes_the_place_of_a_page_only(tmp_path):
    """Guards a run's own files, stories, models and devices, by whatever name or link they are given."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    for name in ("report.html", "page.html"):
        (run / name).write_text("<!DOCTYPE HTML><html>")
    (run / "link.html").symlink_to("config.json")
    (run / "empty").touch()
    for allowed in ("page.html", "empty", "new.html", "no folder/new.html"):
        check_output("--to", run / allowed, "page")
    (run.parent / "report.html").write_text("<!doctype html>")
    check_output("--to", run.parent / "report.html", "page")
    check_output("--output", run / "empty", "picture")
    refused = {run: "is a folder", run / "report.html": "is the report of a run", Path("/dev/full"): "no regular file"}
    refused |= {run / "config.json": "is no page", run / "link.html": "is no page"}
    for path, why in refused.items():
        with pytest.raises(UsageError, match=f"^--to {path} is .*{why.removeprefix('is ')}"):
            check_output("--to", path, "page")
    with pytest.raises(UsageError, match="is no picture"):
        check_output("--output", run / "page.html", "picture")


def test_a_lock_that_was_removed_while_it_was_held_still_excludes(tmp_path):
    """Guards against a waiter that dies of the removed folder, or that gets a lock nobody else can see."""
    path, events, inside = tmp_path / "corpus" / "lock", [], threading.Event()

    def wait_for_it():
        with locked(path, lambda holder: inside.set()):
            events.append("second in")
            with locked(tmp_path / "other", lambda holder: None):  # locks of other files are others
                events.append(path.exists())

    with locked(path, lambda holder: pytest.fail("nobody holds it")):
        second = threading.Thread(target=wait_for_it)
        second.start()
        assert inside.wait(10)
        shutil.rmtree(path.parent)
        events.append("first out")
    second.join(10)
    assert events == ["first out", "second in", True]


def test_a_lock_whose_folder_is_removed_before_it_is_opened(tmp_path):
    """Guards against the moment between making the folder and the file in it."""
    removals = iter([1, 2])

    class Path(type(tmp_path)):
        def open(self, *arguments):
            if next(removals, None):
                shutil.rmtree(self.parent)
            return super().open(*arguments)

    with locked(Path(tmp_path / "corpus" / "lock"), lambda holder: None):
        assert (tmp_path / "corpus" / "lock").read_text() == str(os.getpid())


def test_who_holds_a_lock_is_named(tmp_path):
    with locked(tmp_path / "lock", lambda holder: None):
        holders = []

        def refuse(holder):
            holders.append(holder)
            raise UserError("busy")

        with pytest.raises(UserError, match="busy"), locked(tmp_path / "lock", refuse):
            pass
    assert holders == [str(os.getpid())]
