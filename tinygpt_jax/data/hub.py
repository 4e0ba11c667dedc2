"""TinyStories through the `datasets` library. Nothing else knows the dataset hub."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinygpt_jax.errors import UnfinishedError

TINYSTORIES = "roneneldan/TinyStories"
PATIENCE_SECONDS = 12.0
_INSTEAD = "use --data builtin (needs no network) or --data with a file or folder of stories"


def load(name: str = TINYSTORIES, streaming: bool = False) -> Mapping[str, Any]:
    """The dataset's splits by name, each with an `iter(batch_size)` that yields columns.

    Without `streaming` the dataset is downloaded first, or the copy that an earlier download left is used. HF_HOME,
    HF_ENDPOINT and HF_HUB_OFFLINE are honoured. `name` may be a local folder laid out like the hub's.

    Raises:
        UnfinishedError: there is neither a hub that answers nor a copy; within about 15 seconds.
    """
    is_local = os.path.isdir(name)
    if not is_local and not _asked_to_stay_offline() and not _hub_answers():
        # The libraries would try again and again, for minutes. Offline they take the copy at once, if there is one.
        _stay_offline()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # nothing is sent anywhere but what asks for the stories
    import datasets

    try:
        return datasets.load_dataset(name, streaming=streaming)  # type: ignore[return-value]
    except Exception as error:  # the libraries below raise their own kinds, for one cause several
        raise UnfinishedError(_explain(name, error)) from error


def batches(split: Iterable[Any], field: str = "text") -> Iterator[list[Any]]:
    """The texts of a split, a thousand at a time.

    Raises:
        UnfinishedError: the hub stopped answering.
    """
    stories = iter(split.iter(batch_size=1000))  # type: ignore[attr-defined]
    while True:
        try:
            batch = next(stories, None)
        except Exception as error:
            raise UnfinishedError(_explain(TINYSTORIES, error)) from error
        if batch is None:
            return
        yield batch[field]


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
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if _asked_to_stay_offline():
        why = f"{_endpoint()} is out of reach, or HF_HUB_OFFLINE is set"
        return f"{why}, and {name} was not downloaded before: {_INSTEAD}"
    return f"cannot load {name} ({reason}): run again to go on with the download, or {_INSTEAD}"
