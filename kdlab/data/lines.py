"""Lines of text files, plain or compressed, checked as they are read; light to import.

A line ends at a newline byte and nowhere else: U+2028, U+0085, form feeds and the like are ordinary characters, so
that both sides of a corpus count the same lines as `wc -l` does. Nothing but that newline is taken off.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from kdlab.errors import UserError


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file; .gz, .xz and .zst are unpacked by their suffix.

    Raises: UserError naming file and line: missing, a directory, empty, damaged, not UTF-8, NUL, CRLF.
    """
    path = Path(path)
    if problem := file_problem(path):
        raise UserError(problem)
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                yield _checked(raw, path, number)
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:  # ValueError: pyarrow's zstd
        raise UserError(
            f"{path}, line {number + 1}: the file cannot be read further ({error}), so the lines after it are unknown; "
            f"fetch it again, and check that its suffix '{path.suffix}' says how it is packed"
        ) from error
    if number == 0:
        raise UserError(_empty(path))


def file_problem(path: str | Path) -> str | None:
    """What is wrong with a text file as far as can be told without reading it; None when nothing is."""
    path = Path(path)
    if path.is_dir():
        return f"{path} is a directory, but one text file is read here; write the path of a file in it"
    if not path.exists():
        return (
            f"{path} does not exist, so its text cannot be read; check the path (data.root, for one) or fetch the file"
        )
    if not os.access(path, os.R_OK):
        return f"{path} may not be read by you, so its text is out of reach; change its permissions or choose another"
    if path.is_file() and path.stat().st_size == 0:  # a pipe has no size
        return _empty(path)
    return None


def check_text(text: object, where: str) -> str:
    """The text itself when it is a string that every file can hold. Raises: UserError."""
    if not isinstance(text, str):
        raise UserError(f"{where}: {text!r} is no text, but each side must be a string; check the key or the file")
    if "\0" in text:
        raise UserError(f"{where}: a NUL character, which no tokenizer takes; remove it, e.g. with tr -d '\\000'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {error.reason}, so it is no valid Unicode text; repair or remove the line"
        ) from error
    return text


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20)
    return open(path, "rb", buffering=1 << 20)


def _checked(raw: bytes, path: Path, number: int) -> str:
    where = f"{path}, line {number}"
    if raw.endswith(b"\n"):
        raw = raw[:-1]
    if raw.endswith(b"\r"):
        raise UserError(
            f"{where}: ends in CRLF; the carriage return would become part of the text; "
            f"convert the file, e.g. with sed -i 's/\\r$//'"
        )
    if b"\0" in raw:
        raise UserError(
            f"{where}: a NUL byte, so this is no UTF-8 text (UTF-16, or binary?); "
            f"convert it with iconv, or remove it with tr -d '\\000'"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} (0x{raw[error.start]:02x}) is not valid UTF-8, so the text would be "
            f"garbled; convert the file, e.g. with iconv -f latin1 -t utf-8"
        ) from error


def _empty(path: Path) -> str:
    return f"{path} is empty, so there is nothing to learn from or to score; write the path of a file with text"
