"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from tinygpt_jax.atomic import write_atomically
from tinygpt_jax.errors import UserError


def test_folders_are_made_and_content_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, method):
    """Guards against writing to the file itself, and against a partial file left after a full disk."""
    path = tmp_path / "page.html"
    write_atomically(path, b"old")

    def fail(self, *_):
        if method == "write_bytes":
            with self.open("wb") as file:
                file.write(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(UserError, match=r"page\.html: No space left on device") as error:
        write_atomically(path, b"new")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "plots").write_text("")
    with pytest.raises(UserError, match="plots"):
        write_atomically(tmp_path / "plots" / "loss.png", b"")
