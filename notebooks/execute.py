"""Run the notebooks and write their outputs into them: python notebooks/execute.py [NOTEBOOK ...]"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def executed(path: Path, timeout_sec: int = 300) -> nbformat.NotebookNode:
    """A notebook with new outputs. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(notebook, timeout=timeout_sec, kernel_name="python3").execute()


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
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def main() -> None:
    """Run all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebook:
        nbformat.write(without_traces(executed(path)), path)
        print(path)


if __name__ == "__main__":
    main()
