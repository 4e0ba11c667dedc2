"""The command `prepare`: what it prints, draws and refuses."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from experiments import prepare, presets
from tinygpt_jax.data import corpus, grammar

TEXTS = [text for text, _ in grammar.write_stories(40, seed=2)]

PICTURES = {"word_cloud.png", "story_lengths.png", "token_ranks.png"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A .jsonl file of stories, one of them twice; the cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TEXTS[0]]))
    return path


def test_it_ends_with_a_table_and_pictures(source, tmp_path, capsys):
    """Shares that are not those of the rows a model is trained on; a picture that is not drawn."""
    prepare.main(["--data", str(source), "--vocabulary", "compact", "--context-length", "16"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    values = {name.strip(): value.split() for name, value in lines.items()}
    assert sum(int(number) for number in values["stories"]) == 41
    assert values["packed rows of 16"] and values["padded rows of 16"]
    assert values["duplicates"] == ["1,", "kept"]
    assert values["vocabulary"][0] == "compact,"
    folder = values["folder"][0]
    assert folder.startswith(str(tmp_path / "cache" / "tinygpt_jax"))
    drawn = {name for name in os.listdir(folder) if name.endswith(".png")}
    assert drawn == PICTURES


def test_show_prints_rows_as_the_model_sees_them(source, tmp_path, capsys):
    """A shift or a mask that looks right in the code and is not in the data."""
    prepare.main(["--data", str(source), "--show", "2", "--context-length", "400", "--pictures", str(tmp_path / "p")])
    inputs, targets, mask = capsys.readouterr().out.split("row 0\n")[1].splitlines()[:3]
    (_, *read), (*said, end) = inputs.removeprefix("inputs   ").split("│"), targets.removeprefix("targets  ").split("│")
    assert "".join(said) in TEXTS
    assert inputs.startswith("inputs   <|endoftext|>│") and read[:-1] == said
    count = len(said) + 1
    assert mask == f"mask     {count} that count, then {400 - count} that do not"
    assert end == f"<|endoftext|> x {401 - count}" and read[-1] == f"<|endoftext|> x {400 - count}"
    assert {path.name for path in (tmp_path / "p").iterdir()} == PICTURES


def test_show_prints_no_commands_to_the_terminal(source, capsys):
    source.write_text("".join(json.dumps({"text": f"A \x1b[2J ball \x07 {i}."}) + "\n" for i in range(40)))
    prepare.main(["--data", str(source), "--show", "1", "--context-length", "16"])
    out = capsys.readouterr().out
    assert out.count("\ufffd") >= 4 and not {"\x1b", "\x07"} & set(out)


def test_a_preset_prepares_what_training_with_it_takes(source, capsys):
    """Minutes of work on a corpus that is then prepared again, with another vocabulary."""
    prepare.main(["--data", str(source), "--preset", "laptop"])
    folder = capsys.readouterr().out.split("folder ")[-1].split()[0]
    assert str(corpus.prepare(replace(presets.get("laptop").config.data, source=str(source))).folder) == folder
    prepare.main(["--data", str(source), "--preset", "laptop", "--max-vocab", "9"])
    assert folder not in capsys.readouterr().out


def test_its_flags_reach_the_preparation(source, monkeypatch, capsys):
    """A flag that is offered and does nothing."""
    asked, real = {}, prepare.prepare
    monkeypatch.setattr(prepare, "prepare", lambda data, **options: asked.update(options) or real(data, **options))
    prepare.main(["--data", str(source), "--workers", "1", "--rebuild", "--verify"])
    assert asked == {"workers": 1, "streaming": False, "rebuild": True, "verify": True}
    assert "\nall checksums match\n" in capsys.readouterr().out


def run(*flags, **environment):
    command = [sys.executable, "-m", "experiments.prepare", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--data", "nowhere.txt"], 2, "--data nowhere.txt: no such file or folder"),
        (["--data", "builtin", "--context-length", "0"], 2, "context_length 0: must be at least 1"),
        (["--data", "https://x.org/y.txt"], 2, "--data https://x.org/y.txt is an address: download it first"),
        (["--data", "builtin", "--workers", "0"], 2, "workers 0: must be at least 1"),
        (["--data", "builtin", "--vocabulary", "gpt3"], 2, "gpt3"),
        (["--data", "{empty}"], 1, "holds no stories"),
        (["--data", "{binary}"], 1, "is not a UTF-8 text file"),
    ],
)
def test_failures_are_one_line_with_the_exit_code(tmp_path, flags, code, message):
    """A traceback for a typing mistake."""
    for name, content in (("empty", b""), ("binary", b"\0\1")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    flags = [flag.format(empty=tmp_path / "empty.txt", binary=tmp_path / "binary.txt") for flag in flags]
    result = run(*flags, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert result.returncode == code
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in result.stderr
    assert not (tmp_path / "cache" / "tinygpt_jax").exists() or not os.listdir(tmp_path / "cache" / "tinygpt_jax")


def test_stories_without_words_have_no_word_cloud(source, capsys):
    """A traceback of the library that draws it, which can show neither emoji nor a word of 2,000 letters."""
    source.write_text("".join(json.dumps({"text": f"🙂🎉 {'x' * 2000} {i}"}) + "\n" for i in range(40)))
    prepare.main(["--data", str(source)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "word_cloud.png is left out: there is no word in the training stories"
    assert [line.split("/")[-1].split(":")[0] for line in lines[-2:]] == ["story_lengths.png", "token_ranks.png"]
