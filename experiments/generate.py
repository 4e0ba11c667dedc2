"""Write stories with a trained model: python -m experiments.generate --workdir runs/ --prompt "Once upon a time" """

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments import cli
from tinygpt_jax.config import Sampling
from tinygpt_jax.devices import Device, use_device
from tinygpt_jax.terminal import harmless


@dataclass(frozen=True)
class Arguments:
    """Write stories with a trained model, on any device. The same seed gives the same stories."""

    workdir: Path = Path("runs")  # folder of the run
    prompt: str = ""  # how the story begins; if empty, the model begins it
    num_samples: int = 1  # how many stories
    max_new_tokens: int = 256  # a story that is longer is cut
    seed: int = 0  # of the random choices
    checkpoint: Literal["best", "last"] = "best"  # by validation loss, or the newest
    device: Device = "auto"  # gpu fails where there is none
    json: bool = False  # print one JSON object
    sampling: Sampling = field(default_factory=Sampling)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, write, and print: as it is written on a terminal, else each story when it is whole."""
    arguments = cli.parse(Arguments, argv)
    use_device(arguments.device)

    from tinygpt_jax.generation import encode_prompt, generate, stream
    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(arguments.workdir, arguments.checkpoint)
    # A prompt that is not UTF-8 arrives with its bytes hidden in surrogates, which cannot be printed.
    prompt = arguments.prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    dropped = encode_prompt(run.tokenizer, prompt, run.config.model.context_length)[1]
    if dropped:
        reads = f"the model reads {run.config.model.context_length:,} tokens"
        print(f"warning: {reads}: the first {dropped:,} tokens of the prompt are left out", file=sys.stderr)
    model = (run.model, run.params, run.tokenizer)
    options = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if sys.stdout.isatty() and arguments.num_samples == 1 and not arguments.json:
        pieces = stream(*model, prompt, arguments.sampling, **options)
        print(harmless(prompt + next(pieces, "")), end="", flush=True)
        for piece in pieces:
            print(harmless(piece), end="", flush=True)
        print()
        return
    options["num_samples"] = arguments.num_samples
    samples = generate(*model, [prompt], arguments.sampling, show_progress=True, **options)
    if arguments.json:
        stories = [{"text": sample.text, "finished": sample.finished} for sample in samples]
        settings = {**dataclasses.asdict(arguments.sampling), "max_new_tokens": arguments.max_new_tokens}
        document = {"prompt": prompt, "seed": arguments.seed, "step": run.step, "settings": settings}
        print(json.dumps(document | {"samples": stories}, ensure_ascii=False))
    else:
        stories = "\n\n---\n\n".join(prompt + sample.text for sample in samples)
        print(harmless(stories) if sys.stdout.isatty() else stories)


if __name__ == "__main__":
    cli.run(main)
