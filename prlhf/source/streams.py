"""Bytes and text of a file, decompressed, in the encoding that its first bytes indicate."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow as pa

from prlhf.errors import PrlhfError, one_line

PACKED = (".gz", ".bz2", ".xz", ".zst")
MARK = "\ufeff"  # the byte order mark, which Excel and PowerShell write at the start of a file
ERRORS = (OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError, pa.ArrowException)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading the file `path` into an error of one line.

    Raises:
        PrlhfError: the file cannot be read.
    """
    try:
        yield
    except UnicodeError as error:
        raise PrlhfError(f"cannot read {path}: it is not UTF-8 ({one_line(error)})", "save it as UTF-8") from error
    except ERRORS as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PrlhfError(f"cannot read {path}: {' '.join(why.split())}", "check the file") from error


def open_bytes(path: Path) -> BinaryIO:
    """Open the file as bytes, decompressed if its name has the suffix of a compression."""
    packed = path.suffix.lower()
    if packed == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if packed == ".bz2":
        return cast(BinaryIO, bz2.open(path))
    if packed == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if packed == ".zst":
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def open_text(path: Path) -> TextIO:
    """Open the file as text with unchanged line ends; UTF-16 and UTF-32 are recognized by the first bytes.

    A byte that is not UTF-8 becomes a lone surrogate, U+DC80 to U+DCFF.
    """
    encoding = _encoding(path)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"  # so that a bad byte affects one row only
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def byte_lines(path: Path) -> Iterator[bytes]:
    """Yield the file's lines in UTF-8, with their line ends.

    They are bytes, because text is also split at a lone carriage return, and stops at a byte that is not UTF-8.
    """
    encoding = _encoding(path)
    if encoding.startswith("utf-8"):
        with open_bytes(path) as file:
            yield from file
    else:
        with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="\n") as text:
            yield from (line.encode("utf-8", "surrogatepass") for line in text)


def read_all(path: Path) -> bytes:
    """Return the whole file in UTF-8, without a byte order mark."""
    with open_bytes(path) as file:
        content = file.read()
    encoding = _encoding(path)
    if not encoding.startswith("utf-8"):
        content = content.decode(encoding).encode("utf-8", "surrogatepass")
    return content.removeprefix(b"\xef\xbb\xbf")


def _encoding(path: Path) -> str:
    with open_bytes(path) as file:
        head = file.read(4)
    return json.detect_encoding(head) if head else "utf-8"
