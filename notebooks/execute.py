"""Run the notebooks and write their outputs into them: python notebooks/execute.py [NOTEBOOK ...]"""

import argparse
import hashlib
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SOURCES = "executed_sources"  # in the metadata: which sources the outputs are of


def executed(
    notebook: nbformat.NotebookNode, kernel: KernelManager | None = None, timeout_sec: int = 900
) -> nbformat.NotebookNode:
    """The notebook with new outputs, in a kernel of its own or in one that is running.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    return NotebookClient(notebook, km=kernel, timeout=timeout_sec, kernel_name="python3").execute()


def with_parameters(notebook: nbformat.NotebookNode, **values: object) -> nbformat.NotebookNode:
    """The same cells with other values for names that the cell with the tag "parameters" sets, as papermill does it.

    Raises KeyError for a name that this cell does not set.
    """
    position, cell = next(
        (number, cell) for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    if missing := [name for name in values if f"{name} = " not in cell.source]:
        raise KeyError(f"{missing} are not among the parameters")
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(lines))
    return notebook


def sources(notebook: nbformat.NotebookNode) -> str:
    """A checksum of all code of a notebook."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars, times, and the text next to a picture, which may name folders of this machine."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if {"text/html", "image/png"} & set(output.get("data", {})):
                output.data.pop("text/plain", None)
                output.data.pop("image/jpeg", None)  # the same picture again
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata[SOURCES] = sources(notebook)
    return notebook


def main() -> None:
    """Run all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebook:
        nbformat.write(without_traces(executed(nbformat.read(path, as_version=4))), path)
        print(path)


if __name__ == "__main__":
    main()
