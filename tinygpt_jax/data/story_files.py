"""Stories from one file: .txt, .jsonl, .csv or .parquet, each also compressed as .gz or .zst.

- `.txt`: stories stand between `<|endoftext|>`, on a line of its own or not, as TinyStories is published; whitespace
  around a story is the file's layout and not the story's. A file without `<|endoftext|>` in its first 16 MiB holds
  one story per block of lines, with blank lines between the blocks.
- `.jsonl`: an object per line. `.csv`: a header, then a record per row. `.parquet`: a table. The story is the field
  `text`, or `story` where there is no `text`, and is kept to the letter.

A file is read as a stream: memory is bounded by the longest story, which may have 16 MiB.
"""

import contextlib
import csv
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tinygpt_jax.errors import UserError, first_line

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TEXT_FIELDS = ("text", "story")
LONGEST_STORY = 2**24  # bytes
_CHUNK = 2**20

Advance = Callable[[int], object]  # told how many more bytes of the file, as it lies on the disk, were read


class BadRecord(NamedTuple):
    """A place in a file where there should be a story and is none."""

    where: str
    problem: str


def format_of(path: Path) -> str:
    """The format that the name says, without the compression; empty if it says none that is known."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return inner.suffix.lower() if inner.suffix.lower() in FORMATS else ""


def read_file(path: Path, advance: Advance) -> Iterator[str | BadRecord]:
    """Yield the file's stories in order, and in their places the records that are malformed.

    Raises:
        UserError: the file as a whole cannot be read as what its name says.
    """
    read = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        with path.open("rb") as file:
            yield from read[format_of(path)](path, file, advance)
    except OSError as error:
        if error.errno is None:  # not the system's, but what a library says of the content
            raise UserError(f"{path} is damaged or cut short ({first_line(error)}): get it again") from None
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _read_txt(path: Path, file: BinaryIO, advance: Advance) -> Iterator[str | BadRecord]:
    chunks = _text_chunks(path, file, advance)
    start = b""
    while b"<|endoftext|>" not in start and len(start) <= LONGEST_STORY and (chunk := next(chunks, b"")):
        start += chunk
    separator = rb"<\|endoftext\|>" if b"<|endoftext|>" in start else rb"\n\s*\n"
    for offset, line, part in _split(path, itertools.chain([start], chunks), re.compile(separator)):
        try:
            text = part.decode().strip()
        except UnicodeDecodeError as error:
            line += part.count(b"\n", 0, error.start)
            yield BadRecord(f"{path}, line {line} (byte {offset + error.start})", "not valid UTF-8")
        else:
            if text:
                yield text


def _read_jsonl(path: Path, file: BinaryIO, advance: Advance) -> Iterator[str | BadRecord]:
    for _, line, part in _split(path, _text_chunks(path, file, advance), re.compile(rb"\n")):
        if not part.strip():
            continue
        where = f"{path}, line {line}"
        try:
            record = json.loads(part.decode())
        except UnicodeDecodeError:
            yield BadRecord(where, "not valid UTF-8")
        except (ValueError, RecursionError) as error:
            yield BadRecord(where, f"not JSON: {error}")
        else:
            yield _checked(record, where, "half a character: an escape from \\ud800 to \\udfff stands alone")


def _read_csv(path: Path, file: BinaryIO, advance: Advance) -> Iterator[str | BadRecord]:
    lines = _split(path, _text_chunks(path, file, advance), re.compile(rb"\n"))
    # Bytes that are not UTF-8 become lone surrogates, which `_checked` finds in the record they belong to.
    reader = csv.reader(part.decode(errors="surrogateescape") + "\n" for _, _, part in lines)
    csv.field_size_limit(LONGEST_STORY)
    try:
        header = next(reader, [])
        if header:
            _require_field(path, header)
        for row in reader:
            if row:
                yield _checked(dict(zip(header, row, strict=False)), f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}; is a quote left open?") from None


def _read_parquet(path: Path, file: BinaryIO, advance: Advance) -> Iterator[str | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() in COMPRESSIONS:  # a parquet file is read from its end, a compressed one is not
                unpacked = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(_unpacked(path, file), unpacked)
                file = unpacked
            table = pq.ParquetFile(file)
            field = _require_field(path, table.schema_arrow.names)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    where = f"{path}, row {row}"
                    try:
                        yield _checked({field: value.as_py()}, where)
                    except UnicodeDecodeError:
                        yield BadRecord(where, "not valid UTF-8")
                advance(size * len(batch) // table.metadata.num_rows)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a whole parquet file ({first_line(error)}): download it again") from None


def _checked(record: Any, where: str, surrogate: str = "not valid UTF-8") -> str | BadRecord:
    """The text of a record, if it is one; `surrogate` says what a lone surrogate in it comes from."""
    if not isinstance(record, dict):
        return BadRecord(where, f"not an object with a text field but {_a(record)}")
    field = next((name for name in TEXT_FIELDS if name in record), None)
    if field is None:
        return BadRecord(where, f"has no text field; its fields: {', '.join(map(str, record)) or 'none'}"[:200])
    text = record[field]
    if not isinstance(text, str):
        return BadRecord(where, f"its {field} is not text but {_a(text)}")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return BadRecord(where, surrogate)
    return text


def _a(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number")


def _require_field(path: Path, names: list[str]) -> str:
    for field in TEXT_FIELDS:
        if field in names:
            return field
    raise UserError(
        f"{path} has no column text; its columns: {', '.join(names)[:200]}. Rename the one with the stories"
    )


def _split(path: Path, chunks: Iterator[bytes], separator: re.Pattern[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (byte offset, line number, bytes) of each part between separators."""
    rest, offset, line = b"", 0, 1
    for chunk in chunks:
        buffer, start = rest + chunk, 0
        for match in separator.finditer(buffer):
            yield offset + start, line, buffer[start : match.start()]
            line += buffer.count(b"\n", start, match.end())
            start = match.end()
        rest, offset = buffer[start:], offset + start
        if len(rest) > LONGEST_STORY:
            raise UserError(
                f"{path}: no story ends within {LONGEST_STORY >> 20} MiB of line {line}: "
                "put a line <|endoftext|> between stories (.txt), or give one record a line"
            )
    if rest:
        yield offset, line, rest


def _text_chunks(path: Path, file: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """The file's content, decompressed and without a byte-order mark.

    Raises:
        UserError: it is not text.
    """
    position, is_first, content = 0, True, _unpacked(path, file)
    while chunk := content.read(_CHUNK):
        if is_first:
            if b"\0" in chunk:
                raise UserError(f"{path} is not a UTF-8 text file: its byte {chunk.index(0)} is zero")
            chunk, is_first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        advance(file.tell() - position)
        position = file.tell()
        yield chunk


def _unpacked(path: Path, file: BinaryIO) -> Any:
    """The file's content to `read`, decompressed if its name says so, by Arrow, which notices a missing end."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return file
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
