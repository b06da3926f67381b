"""Makes the page of the notebook, with what its cells printed and drew."""

import base64
import json

from .text import ROOT

PATH = "tutorial.md"
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def page() -> dict[str, str | bytes]:
    """Returns the page as Markdown and its pictures, by their paths."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    made: dict[str, str | bytes] = {}
    parts: list[str] = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                printed = "".join(output["text"]).rstrip()
                parts.append(f"```text\n{printed}\n```")
            elif picture := output.get("data", {}).get("image/png"):
                path = f"tutorial_{len(made)}.png"
                made[path] = base64.b64decode(picture)
                parts.append(f"![What the cell draws]({path})")
    return {PATH: "\n\n".join(parts) + "\n", **made}
