"""A part in a process of its own, with a time limit, and a file for what it found."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from experiments.measuring.gpu_parts.task import Part, Task
from tinygpt_jax.errors import UserError, first_line
from tinygpt_jax.files import write_atomically

# What a part found so far: seconds, an error in one line ("" if there was none), and tables by their titles.
Result = dict[str, Any]


def run_part(part: Part, limit: float, task: Task) -> Result:
    """Measure a part within `limit` seconds. What it had found before it failed, was cut or died is in the result."""
    file, begun = task.out / "parts" / f"{part.__name__}.json", time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_result(file, {"seconds": 0.0, "error": "it died before it found anything", "tables": {}})
    process = get_context("spawn").Process(target=_work, args=(part, task, file))
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:  # also of Ctrl-C
        with contextlib.suppress(ProcessLookupError):  # all are gone, or it has no group of its own yet
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
    result = read_result(file)
    result["seconds"] = time.monotonic() - begun
    if late:
        result["error"] = f"it took more than {limit:.0f} s and was stopped"
    elif process.exitcode:
        result["error"] = result["error"] or f"its process ended with exit code {process.exitcode}"
    write_result(file, result)
    return result


def read_result(file: Path) -> Result:
    """Of a part."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_result(file: Path, result: Result) -> None:
    """All of it or nothing."""
    write_atomically(file, json.dumps(result, indent=1).encode())


def _work(part: Part, task: Task, file: Path) -> None:
    """What the process does: each piece is in the file as soon as it is measured, and what is printed in a log."""
    os.setsid()  # a group of its own, which ends as a whole
    parent = parent_process()
    assert parent
    threading.Thread(target=lambda: (parent.join(), os.killpg(0, signal.SIGKILL)), daemon=True).start()
    log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(task.environment())
    result: Result = {"seconds": 0.0, "error": "", "tables": {}}
    try:
        for title, table in part(task):
            result["tables"][title] = table
            write_result(file, result)
        write_result(file, result)
    except Exception as error:  # whatever it is, the other parts go on
        result["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        write_result(file, result)
        raise
    finally:
        sys.stdout.flush()
