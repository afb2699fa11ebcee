"""Texts as an encoder of Hugging Face `transformers` reads them, once and for all, in a .safetensors file.

The file holds `text` (n, tokens, features) as float16, zeros after a text's end; in its metadata are the encoder's name, and
the table's column of files where it has one. Needs pip install 'justimage[text]'; to train on the file does not.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from justimage import disk
from justimage.data.tables import FILE, TEXT, read_table
from justimage.operators import declare_operators
from justimage.progress import Job, Progress

ENCODED = ".safetensors"
BATCH = 64
"""Texts encoded at a time."""


def encode_table(table: Path, out: Path, encoder: str, max_tokens: int = 64) -> Job[tuple[int, ...]]:
    """Encode a table's column of texts into a file; the shape of what is in it. ValueError or OSError, in one line, for what
    cannot be read or written."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be 1 or more")
    encoder = str(Path(encoder).absolute()) if Path(encoder).is_dir() else encoder
    header, rows = read_table(table)
    if TEXT not in header:
        raise ValueError(f"{table} has no column {TEXT!r} to encode; it has {', '.join(header)}")
    disk.check_writable(out)
    texts = [row[header.index(TEXT)] for row in rows]
    parts = []
    for start in range(0, len(texts), BATCH):
        yield Progress("encoding", start, len(texts))
        parts.append(encode_texts(encoder, texts[start : start + BATCH], max_tokens).half())
    found = torch.cat(parts)
    longest = int((found != 0).any(-1).sum(1).max())
    if not longest:
        raise ValueError(f"{encoder} finds no token in any text of {table}")
    files = [row[header.index(FILE)] for row in rows] if FILE in header else None
    metadata = {"encoder": encoder, "files": json.dumps(files)}
    disk.write(out, save({"text": found[:, :longest].contiguous()}, metadata))
    yield Progress("encoding", len(texts), len(texts))
    return tuple(found[:, :longest].shape)


def is_local(encoder: str) -> bool:
    """Whether an encoder is named by its folder, not by its name on the Hub."""
    return encoder.startswith((".", "~")) or PurePath(encoder).is_absolute()


def same_encoder(a: str, b: str) -> bool:
    """Whether two names may be of one encoder; folders, by their own names: they lie elsewhere on another machine."""
    return a == b or (is_local(a) and is_local(b) and PurePath(a).name == PurePath(b).name)


@lru_cache(maxsize=1)
def load_encoder(name: str) -> tuple[Any, Any]:
    """A tokenizer and the encoder of a model, by its name on the Hub or its folder; weights from safetensors only, no code."""
    declare_operators()
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ValueError("encoders of texts need more: pip install 'justimage[text]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True).eval()
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"{name} is no encoder that could be loaded: {' '.join(str(error).split())[:200]}") from error
    part = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)
    return tokenizer, part


@torch.no_grad()
def encode_texts(encoder: str, texts: Sequence[str], max_tokens: int) -> Tensor:
    """Texts (n, max_tokens, features), float32, zeros after their end; longer ones are cut."""
    tokenizer, model = load_encoder(encoder)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    given = tokenizer(list(texts), padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    try:
        found = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    except (RuntimeError, IndexError) as error:
        limit = getattr(model.config, "max_position_embeddings", "fewer")
        raise ValueError(f"{encoder} cannot read {max_tokens} tokens; it reads {limit}: --max-tokens") from error
    return found.float() * given["attention_mask"][..., None]


def read_encoded(path: Path) -> tuple[Tensor, str, list[str] | None]:
    """Texts (n, tokens, features), the encoder's name, and the files they are of; ValueError for a file of something else."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            texts, files = file.get_tensor("text"), json.loads(metadata["files"])
            encoder = metadata["encoder"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no encoded texts; justimage prepare TABLE.csv {path} --encoder NAME makes some"
        ) from error
    if texts.ndim != 3 or 0 in texts.shape or not texts.is_floating_point() or not texts.isfinite().all() or not encoder:
        raise ValueError(f"{path}: its text is {texts.dtype} {tuple(texts.shape)}; it must be finite, (n, tokens, features)")
    if files is not None and (not isinstance(files, list) or len(files) != len(texts) or {*map(type, files)} - {str}):
        raise ValueError(f"{path} has {len(texts)} texts and not as many files")
    return texts, encoder, files
