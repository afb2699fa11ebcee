"""Weights on the Hub of Hugging Face: pushed with a card, and taken from hf://organisation/name[@revision].

A repository holds a folder as `justimage convert` writes it, README.md and samples.png. Of it only JSON and safetensors are
fetched, into $JUSTIMAGE_CACHE/hub, where they are used without a network from then on; the hashes in MANIFEST.json are checked
as those of any checkpoint. Needs pip install 'justimage[hub]'.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from justimage import disk

ADDRESS = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
"""Of a repository; a path swallows one of the two slashes."""
FETCHED = ["*.json", "*.safetensors"]
"""Files that are downloaded; nothing else is, or is opened."""
EXTRA = "pip install 'justimage[hub]'"


def is_address(path: str | Path) -> bool:
    return str(path).startswith("hf:/")


@lru_cache
def fetch(address: str | Path) -> Path:
    """The folder with a repository's weights, downloaded where it is not there yet. ValueError or OSError, in one line, for one
    that is missing, private or cannot be reached."""
    repository, revision = parse_address(address)
    with in_one_line(f"hf://{repository}" + (f"@{revision}" if revision else "")):
        from huggingface_hub import snapshot_download, utils

        utils.logging.set_verbosity_error()
        place = disk.cache_dir("hub") / repository.replace("/", "--") / (revision or "main").replace("/", "--")
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FETCHED, local_dir=place))


def parse_address(address: str | Path) -> tuple[str, str | None]:
    """The repository and the revision of an address."""
    found = ADDRESS.fullmatch(str(address))
    if not found:
        raise ValueError(
            f"{address} is no address on the Hub; allowed: hf://organisation/name, or hf://organisation/name@revision"
        )
    return found["repository"], found["revision"]


@contextmanager
def in_one_line(where: str) -> Iterator[None]:
    """Within the block, failures of the Hub and of the way there are one line."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise ValueError(f"{where} is on the Hub, which needs huggingface_hub: {EXTRA}") from error
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{where}: there is no such revision") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{where} asks for an agreement first: visit its page, then huggingface-cli login") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{where} does not exist, or is private and you are not logged in (huggingface-cli login)") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(f"{where} is not in the cache, and the Hub cannot be reached") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no answer")
        raise OSError(f"{where}: the Hub answers {status}: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the connection
        raise OSError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def push(folder: Path, repository: str, message: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder's files, as a repository's only weights, into one that is made where there is none; the address of what
    was pushed. Files that are there already are not sent again."""
    if not ADDRESS.fullmatch(f"hf://{repository}"):
        raise ValueError(f"{repository} is no name of a repository; allowed: organisation/name")
    with in_one_line(repository):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: as its organisation has it
        if private and not api.repo_info(repository).private:
            raise ValueError(f"{repository} is there and public; make it private on the Hub, or choose another name")
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message, delete_patterns=["*.safetensors"]
        )
    return f"hf://{repository}@{commit.oid}"
