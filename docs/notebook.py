"""Run docs/notebooks/first_steps.ipynb and keep its outputs: `python docs/notebook.py`. A slow test runs it too."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parent / "notebooks/first_steps.ipynb"


def executed(path: Path, folder: Path, seconds: int = 600) -> NotebookNode:
    """The notebook at `path` with outputs of its own, after a fresh process ran its cells in `folder`.

    Outputs that change from run to run (times, counts of executions) and warnings, which name files of this machine,
    are left out. Raises CellExecutionError if a cell fails, CellTimeoutError if a cell takes longer than `seconds`.
    """
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=seconds, record_timing=False, resources=where).execute()
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = None
    return book


def main() -> None:
    """Write the outputs into the notebook."""
    with tempfile.TemporaryDirectory() as folder:
        book = executed(NOTEBOOK, Path(folder))
    nbformat.write(book, NOTEBOOK)
    sys.stdout.write(f"{NOTEBOOK}\n")


if __name__ == "__main__":
    main()
