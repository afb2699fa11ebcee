"""Weights on the Hub of Hugging Face: pushed with a card, and taken from hf://organisation/name[@revision].

A repository holds a folder as `justimage convert` writes it, README.md and samples.png. Of it only JSON and safetensors are
fetched, into a folder of $JUSTIMAGE_CACHE/hub for each commit, and used without a network from then on; the hashes in
MANIFEST.json are checked as those of any checkpoint. Needs pip install 'justimage[hub]'.
"""

import re
from collections.abc import Iterator, Sequence
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
        from huggingface_hub import HfApi, errors, snapshot_download, utils

        utils.logging.set_verbosity_error()
        commits = disk.cache_dir("hub") / repository.replace("/", "--")
        newest = commits / "refs" / (revision or "main").replace("/", "--")  # the commit of it that is here, whole
        try:
            commit = HfApi().model_info(repository, revision=revision).sha or ""
            snapshot_download(repository, revision=commit, allow_patterns=FETCHED, local_dir=commits / commit)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception:  # of the way there
            if not newest.exists():
                raise
            return commits / newest.read_text()
        disk.write(newest, commit.encode())
        return commits / commit


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
        raise ValueError(f"{where} asks for an agreement first: visit its page, then hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"{where} does not exist, or is private and you are not logged in (hf auth login)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise OSError(f"{where} is not in the cache, and the Hub cannot be reached") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no answer")
        raise OSError(f"{where}: the Hub answers {status}: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the connection
        raise OSError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def create(repository: str, private: bool = False, revision: str | None = None) -> list[str]:
    """Make a repository, and a branch of it, where there is none; the files of weights that it has. ValueError or OSError, in
    one line, for what cannot be pushed to."""
    if "@" in repository or not ADDRESS.fullmatch(f"hf://{repository}"):
        raise ValueError(f"{repository} is no name of a repository; allowed: organisation/name")
    with in_one_line(repository):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: as its organisation has it
        if private and not api.repo_info(repository).private:
            raise ValueError(f"{repository} is there and public; make it private on the Hub, or choose another name")
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        files = api.list_repo_files(repository, revision=revision)
    if "model_index.json" in files:
        raise ValueError(f"{repository} holds a folder for diffusers, which these weights would replace; choose another name")
    return [name for name in files if re.fullmatch(r"[^/]*\.safetensors", name)]


def push(folder: Path, repository: str, message: str, older: Sequence[str], revision: str | None = None) -> str:
    """Upload a folder's files into a repository that `create` made, as its only weights: `older` files are deleted. Returns the
    address of what was pushed. Files that are there already are not sent again."""
    with in_one_line(repository):
        from huggingface_hub import HfApi

        commit = HfApi().upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message, delete_patterns=[*older]
        )
    return f"hf://{repository}@{commit.oid}"
