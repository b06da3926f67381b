"""Files and folders that appear whole or not at all, local or `gs://`."""

from etils import epath


def write_text(path: epath.Path, text: str) -> None:
    """Writes a whole file or nothing: under another name first, then renamed."""
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(text)
    partial.replace(path)


def copy_files(source: epath.Path, target: epath.Path) -> None:
    """Copies the files in a folder and its subfolders into another one, local or `gs://`."""
    for path in source.glob("**/*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
