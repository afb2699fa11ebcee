"""A table of images that Hugging Face `datasets` saved on disk (`save_to_disk`)."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from justimage.disk import printable


def is_hf_table(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or all((root / n).is_file() for n in ("dataset_info.json", "state.json"))


@dataclass
class HFTable:
    """Reads the encoded images of a table's image column; of several splits, `train`."""

    root: Path
    opened: dict[int, Any] = field(default_factory=dict, repr=False)
    """the opened table and its image column, by process"""
    threads = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}

    def file(self, index: int) -> Path:
        return next(self.root / n for n in ("dataset_dict.json", "state.json") if (self.root / n).is_file())

    def read_bytes(self, index: int) -> bytes:
        table, column = self.table()
        content = table[index][column]["bytes"]
        if content is None:
            raise ValueError("the table holds only the path of this image; embed the images (datasets: embed_table_storage)")
        return content

    def labels(self) -> tuple[list[int], list[str]]:
        """The class of each row, -1 for none, and the classes' names."""
        table, _ = self.table()
        from datasets import ClassLabel  # pyright: ignore[reportMissingImports]

        features = {name: f for name, f in table.features.items() if is_label(name, f)}
        if not features:
            return [-1] * len(table), []
        column = self.choose(features, "label")
        labels = [-1 if label is None else int(label) for label in table[column][:]]
        if any(label < 0 for label in labels):
            raise ValueError(f"{self.root}: column {column} has rows without a class; classes are numbers from 0")
        feature = features[column]
        return labels, feature.names if isinstance(feature, ClassLabel) else [str(i) for i in range(max(labels) + 1)]

    def table(self) -> tuple[Any, str]:
        process = os.getpid()
        if process not in self.opened:
            self.opened[process] = self.open()
        return self.opened[process]

    def open(self) -> tuple[Any, str]:
        try:
            from datasets import DatasetDict, Image, load_from_disk  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(f"{self.root} is a table that needs datasets: pip install 'justimage[hf]'") from error
        try:
            table = load_from_disk(str(self.root))
        except Exception as error:  # of many kinds, from the libraries it uses
            reason = printable((str(error).splitlines() or [type(error).__name__])[0])
            raise ValueError(f"{self.root} is not a readable table: {reason}") from error
        if isinstance(table, DatasetDict):
            if "train" not in table and len(table) != 1:
                raise ValueError(
                    f"{self.root} has no split train, but {', '.join(map(str, table))}; give the folder of one of them"
                )
            table = table["train"] if "train" in table else next(iter(table.values()))
        images = {name: f for name, f in table.features.items() if isinstance(f, Image)}
        if not images or not len(table):
            raise ValueError(f"{self.root} holds no images; its columns are {', '.join(table.features)}")
        column = self.choose(images, "image")
        return table.cast_column(column, Image(decode=False)), column

    def choose(self, columns: dict[str, Any], usual: str) -> str:
        """The only column, or the one with the usual name."""
        if len(columns) > 1 and usual not in columns:
            raise ValueError(f"{self.root} has several columns to choose from: {', '.join(columns)}; name one {usual}")
        return usual if usual in columns else next(iter(columns))


def is_label(name: str, feature: Any) -> bool:
    """Whether a column holds classes: by its type, or as integers under a usual name."""
    from datasets import ClassLabel, Value  # pyright: ignore[reportMissingImports]

    integers = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    return isinstance(feature, ClassLabel) or (integers and name in ("label", "labels", "cls", "class"))
