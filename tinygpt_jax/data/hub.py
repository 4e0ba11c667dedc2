"""TinyStories through the `datasets` library. Nothing else knows the dataset hub."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinygpt_jax.data.story_files import Advance, BadRecord
from tinygpt_jax.errors import UnfinishedError, first_line

TINYSTORIES = "roneneldan/TinyStories"
PATIENCE_SECONDS = 12.0
_INSTEAD = "use --data builtin (needs no network) or --data with a file or folder of stories"


@dataclass(frozen=True)
class Hub:
    """A dataset of the hub, with its own validation split where it has one."""

    name: str
    streaming: bool
    unit: str = " stories"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The name: what was prepared once must open without a network."""
        return {"hub": self.name}

    @property
    def own_split(self) -> str:
        """There may be a validation split."""
        return "the dataset" if "validation" in self._splits else ""

    @property
    def total(self) -> int | None:
        """Number of stories, where the hub says it."""
        said = self._splits["train"].info.splits or {}
        return sum(said[name].num_examples for name in self._splits) if set(said) >= set(self._splits) else None

    def read(self, held_out: bool | None, advance: Advance) -> Iterator[str | BadRecord]:
        """The stories of the validation split, or of the training split.

        Raises:
            UnfinishedError: the hub stopped answering.
        """
        split, row = "validation" if held_out else "train", 0
        try:
            for batch in self._splits[split].iter(batch_size=1000):
                for text in batch["text"]:
                    row += 1
                    is_text = isinstance(text, str)
                    yield text if is_text else BadRecord(f"{self.name}, {split}, row {row}", "has no text")
                advance(len(batch["text"]))
        except Exception as error:  # whatever the libraries below raise
            raise UnfinishedError(_explain(self.name, error)) from error

    @cached_property
    def _splits(self) -> Any:
        return load(self.name, self.streaming)


def load(name: str = TINYSTORIES, streaming: bool = False) -> Mapping[str, Any]:
    """The dataset's splits by name, each with an `iter(batch_size)` that yields columns.

    Without `streaming` the dataset is downloaded first, or the copy that an earlier download left is used. HF_HOME,
    HF_ENDPOINT and HF_HUB_OFFLINE are honoured. `name` may be a local folder laid out like the hub's.

    Raises:
        UnfinishedError: there is neither a hub that answers nor a copy; within about 15 seconds.
    """
    if not os.path.isdir(name) and not _asked_to_stay_offline() and not _hub_answers():
        # The libraries would try again and again, for minutes. Offline they take the copy at once, if there is one.
        _stay_offline()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # nothing is sent anywhere but what asks for the stories
    import datasets

    try:
        return datasets.load_dataset(name, streaming=streaming)  # type: ignore[return-value]
    except Exception as error:  # the libraries below raise their own kinds, for one cause several
        raise UnfinishedError(_explain(name, error)) from error


def _hub_answers() -> bool:
    """Whether the hub gives any answer in time, be it an error."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(_endpoint(), timeout=PATIENCE_SECONDS).close()
            answered.set()

    # In a thread, because looking up a name or an answer that drips can take longer than any time limit of a socket.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return answered.is_set()


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _asked_to_stay_offline() -> bool:
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def _stay_offline() -> None:
    """Tell the libraries, whether they are imported already or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets.config
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def _explain(name: str, error: Exception) -> str:
    if _asked_to_stay_offline():
        why = f"{_endpoint()} is out of reach, or HF_HUB_OFFLINE is set"
        return f"{why}, and {name} was not downloaded before: {_INSTEAD}"
    return f"cannot load {name} ({first_line(error)[:200]}): run again to go on with the download, or {_INSTEAD}"
