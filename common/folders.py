"""What folders of rows hold: images, each of which is a row, or Parquet files, which are one table."""

from __future__ import annotations

from pathlib import Path

from common.formats import IMAGE_SUFFIXES


def rows_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images, and Parquet files, in a folder and those below it, each in the order of their paths.

    Parquet files whose name or folder begins with "_" or "." are none of a table: so is known what is being written.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    tables = [
        file
        for file in files
        if file.suffix == ".parquet" and not any(part[0] in "_." for part in file.relative_to(folder).parts)
    ]
    return images, tables
