"""The bytes and the text of a file: unpacked, and in the encoding that its first bytes tell."""

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
MARK = "\ufeff"  # the byte order mark that Excel and PowerShell put at the start of a file
ERRORS = (OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError, pa.ArrowException)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into one line."""
    try:
        yield
    except UnicodeError as error:
        raise PrlhfError(f"cannot read {path}: it is not UTF-8 ({one_line(error)})", "save it as UTF-8") from error
    except ERRORS as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PrlhfError(f"cannot read {path}: {' '.join(why.split())}", "check the file") from error


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name says that it is packed."""
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
    """The file's text, its line ends as they are; UTF-16 and UTF-32 are told by their first bytes.

    A byte that is not UTF-8 becomes a lone surrogate, U+DC80 to U+DCFF.
    """
    encoding = _encoding(path)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"  # so that one bad byte costs one row
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def byte_lines(path: Path) -> Iterator[bytes]:
    """The file's lines in UTF-8, line ends included.

    Bytes, because text would also break lines at a lone carriage return, and stop at the first byte that is not UTF-8.
    """
    encoding = _encoding(path)
    if encoding.startswith("utf-8"):
        with open_bytes(path) as file:
            yield from file
    else:
        with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="\n") as text:
            yield from (line.encode("utf-8", "surrogatepass") for line in text)


def read_all(path: Path) -> bytes:
    """The whole file in UTF-8, without a byte order mark."""
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
