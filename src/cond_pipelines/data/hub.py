"""Data sets on the Hub that are folders of images: the files are downloaded and read as any folder is."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from .account import Account
from .formats import is_metadata, kind_of
from .walk import walk

_README = "README.md"


def folder_of_images(repo_id: str, cache_dir: str | None, account: Account) -> str | None:
    """A local copy of a data set on the Hub; None where its files are tables, or it is not there, for `datasets`.

    No code of the repository is downloaded or run. Where the Hub does not answer, an earlier copy is used.

    Args:
        cache_dir: holds the copy; None: where huggingface_hub keeps its own.
        account: notes what a README says of the files that is not followed.
    """
    cache = None if cache_dir is None else str(Path(cache_dir) / "hub")
    try:
        names = HfApi().list_repo_files(repo_id, repo_type="dataset")
    except Exception:  # of huggingface_hub, of the HTTP library below it: not there, not ours to read, no connection
        try:
            folder = snapshot_download(repo_id, repo_type="dataset", cache_dir=cache, local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        if not _holds_images(walk(folder).files):
            return None
        account.notes.append(
            f"the Hub does not list the files of {repo_id} now: an earlier copy is used, which may lack some"
        )
    else:
        if not _holds_images(names):
            return None
        folder = snapshot_download(repo_id, repo_type="dataset", cache_dir=cache, ignore_patterns=["*.py"])
    if (Path(folder) / _README).is_file():
        with suppress(Exception):  # a README without a head, or with a wrong one, says nothing
            if DatasetCard.load(Path(folder) / _README).data.get("configs"):
                account.notes.append(
                    "configurations of README.md are not followed: all files are read as a folder; "
                    "--dataset_config_name reads one"
                )
    return folder


def _holds_images(names: list[str]) -> bool:
    """Whether most of a repository's files are images or .zip files, and not tables with pictures of a README."""
    kinds = Counter(kind_of(name) for name in names if not is_metadata(name))
    tables = kinds["parquet"] + kinds["arrow"] + kinds["tar"]
    images = kinds["images"] + kinds["arrays"]
    return images > 10 * tables if tables else bool(images or kinds["zip"])
