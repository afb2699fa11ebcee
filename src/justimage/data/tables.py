"""Tables: a header, and a row for each image."""

import csv
from pathlib import Path

from justimage.disk import printable

TABLES = {".csv": ",", ".tsv": "\t"}
"""Suffixes of tables, and what separates their cells."""
FILE, TEXT = "file", "text"
"""Columns with a meaning of their own."""
NAMES = {"file": FILE, "file_name": FILE, "text": TEXT}
"""Their spellings, in any case; `file_name` is that of Hugging Face's image folders."""


def is_table(path: str) -> bool:
    return Path(path).suffix.lower() in TABLES


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table; ValueError for one without rows, or with a row of another length."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file, delimiter=TABLES[path.suffix.lower()]) if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a table: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{path} has no rows; a table has a header, such as {FILE},{TEXT}, and a row for each image")
    header, *rows = lines
    header = [NAMES.get(name.strip().lower(), name.strip()) for name in header]
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"{path} has one column, {printable(header[0], 100)}; commas separate a .csv's cells, tabs a .tsv's")
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"{path}: its header is {printable(','.join(header), 200)}; each column needs a name of its own")
    for i, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {i} has {len(row)} cells; the header has {len(header)}")
    return header, rows
