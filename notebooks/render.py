"""Run the notebooks and write them with their outputs as pages of the documentation: ``python notebooks/render.py``.

The project must have its outputs (``make demo``); KEDRO_ENV chooses the configuration, as in the notebooks.
"""

import base64
import io
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "notebooks"
NAMES = ("explore_dataset", "train_and_evaluate", "predict")
WIDTH = 900  # pixels of a picture at most


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(ROOT)}}).execute()
        (PAGES / f"{name}.md").write_text(page(notebook, name), encoding="utf-8")


def page(notebook: nbformat.NotebookNode, name: str) -> str:
    """The notebook as Markdown; its pictures are saved beside it."""
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown(output, f"{name}_{number}_{place}") for place, output in enumerate(cell.outputs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(output: nbformat.NotebookNode, name: str) -> str:
    """One output; what is printed on the way is left out."""
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        return "*An interactive chart, to be seen in the notebook.*"
    if "image/png" in data:
        return picture(data["image/png"], name)
    if "text/html" in data:
        table = re.search(r"<table.*</table>", data["text/html"], flags=re.DOTALL)  # all else is a message or a script
        return table[0] if table else ""
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""


def picture(png: str, name: str) -> str:
    """Save a picture as JPEG and refer to it."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((WIDTH, 2 * WIDTH))
    image.save(PAGES / f"{name}.jpg", quality=80)
    return f"![]({name}.jpg)"


if __name__ == "__main__":
    main()
