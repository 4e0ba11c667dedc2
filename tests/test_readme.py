"""Every command that the README shows is run, made small by flags that are added to it."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("python -m experiments.")))

SMALL_MODEL = "--n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --batch-size 4 --steps 2 --eval-batches 1"
SMALL = {
    "train": f"{SMALL_MODEL} --builtin-stories 300",
    "prepare": "",
    "generate": "--max-new-tokens 5",
    "evaluate": "",
    "report": "",
    "explorer": "",
    "export": "",
    "import_model": "",
    "double_softmax": "--seconds 0.5",
    "benchmark": "--sizes quickstart --repeats 1",
    "doctor": "",
    "plan": "--n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --gradient-accumulation 1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: a folder with a few stories and, in runs/, a short run."""
    folder = tmp_path_factory.mktemp("readme")
    story = "Once upon a time, a girl named Lily had a {} ball. She was happy.\n"
    colours = ["red", "blue", "green", "big", "small", "new", "old", "soft"] * 5
    stories = (story.format(colour) * length for length, colour in enumerate(colours, 1))
    (folder / "stories.txt").write_text("<|endoftext|>\n".join(stories))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        run("python -m experiments.train --workdir runs/ --preset quickstart")
        run("python -m experiments.export --workdir runs/ --to gpt2 --format huggingface")  # in place of the hub's
    return folder


def run(command):
    name, *flags = shlex.split(command.removeprefix("python -m experiments."))
    if "tinystories" in flags or "tinystories-modern" in flags:
        flags += ["--data", "builtin", "--builtin-stories", "300"]  # the hub is out of reach of tests
    import_module(f"experiments.{name}").main([*flags, *SMALL[name].split()])


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(command)
    assert capsys.readouterr().out


def test_there_are_commands_and_make_targets():
    """Guards the pattern above: if it found nothing, nothing would be tested."""
    assert {c.split()[2].removeprefix("experiments.") for c in COMMANDS} >= {"train", "generate", "evaluate", "prepare"}
    makefile = (ROOT / "Makefile").read_text()
    for line in LINES:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile, line


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name
