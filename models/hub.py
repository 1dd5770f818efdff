"""Checkpoints of the hub: fetched into its cache, found there without a network, or one line that says what to do.

Only data is fetched, and only what is read: safetensors in the layout that transformers reads, JSON, chat templates and
tokenizers. No pickles, no code, no second copy of the weights under other names.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

from lmmprune.errors import ModelError, require
from lmmprune.limits import read_json
from lmmprune.models.aliases import ALIASES
from lmmprune.models.hub_errors import explain, how_to_download

SMALL = ("*.json", "*.jinja", "tokenizer.model")
"""Configuration, tokenizer and chat templates, by the patterns of the hub."""
SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
_LARGE = 10**9


def fetch(hub_id: str, *, weights: bool = True) -> Path:
    """Return the local directory of a checkpoint, downloaded unless the hub's cache has it.

    Args:
        hub_id: ``owner/name``, or ``owner/name@revision``.
        weights: Whether the safetensors are needed: synthetic weights and counting FLOPs do without the gigabytes.

    Raises:
        ModelError: The hub doesn't have it or can't be reached, it is gated, or the disk is too small.
    """
    hub = require("huggingface_hub", "export")
    for part in ("errors", "constants", "logging"):  # which the client loads when it needs them
        require(f"huggingface_hub.{'utils.' * (part == 'logging')}{part}", "export")
    name, _, revision = hub_id.partition("@")
    with _quiet(hub):
        return _fetch(hub, name, revision, weights=weights)


def _fetch(hub: ModuleType, name: str, revision: str, *, weights: bool) -> Path:
    try:
        listed = hub.HfApi().model_info(name, revision=revision or None, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in listed.siblings or ()}
    except Exception as error:  # what a network raises has another class in each of the client's releases
        if not isinstance(error, hub.errors.RevisionNotFoundError):
            status = getattr(getattr(error, "response", None), "status_code", 500)
            why = "the hub can't be reached" if status >= 500 else f"the hub refuses to show it ({status})"
            if (cached := _cached(hub, name, revision, why, weights=weights)) is not None:
                return cached
        raise explain(error, hub, name, weights=weights) from error
    try:
        directory = Path(_download(hub, name, revision, [file for file in sizes if _is_small(file)]))
        if weights:
            files = _weight_files(directory, sizes, name)
            if lost := [file for file in files if file not in sizes]:
                raise ModelError(
                    f"'{name}' on the hub names {lost[0]} (and {len(lost) - 1} more) in its index, and has no such"
                    " file: choose another revision of it"
                )
            _check_space(hub, name, directory, {file: sizes[file] for file in files})
            _download(hub, name, revision, files)
    except ModelError:
        raise
    except Exception as error:  # same
        raise explain(error, hub, name, weights=weights, began=True) from error
    return directory


@contextlib.contextmanager
def _quiet(hub: ModuleType) -> Iterator[None]:
    """Keep the client's own account of every attempt away: what came of them is said in one line."""
    before = hub.utils.logging.get_verbosity()
    hub.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        hub.utils.logging.set_verbosity(before)


def _download(hub: ModuleType, name: str, revision: str, files: list[str]) -> str:
    # Patterns of the hub would read brackets in a name; names of checkpoints have none.
    found: str = hub.snapshot_download(name, revision=revision or None, allow_patterns=files or ["config.json"])
    return found


def _is_small(file: str) -> bool:
    """Say whether a file is read beside the weights; what lies in folders belongs to other formats."""
    if "/" in file:
        return file.startswith("additional_chat_templates/") and file.endswith(".jinja")
    return any(fnmatch(file, pattern) for pattern in SMALL)


def _weight_files(directory: Path, there: Mapping[str, int], name: str) -> list[str]:
    """Return the files of weights that transformers would read of a repository, none if it has others only.

    Args:
        directory: Where configuration and index lie.
        there: The repository's files.
        name: Its name.

    Raises:
        ModelError: It has no safetensors, or its index can't be read.
    """
    named = _json(directory / "config.json").get("transformers_weights")
    for file in (str(named),) if named else (SINGLE, INDEX):
        if file in there:
            return _shards(directory / file) if file.endswith(".index.json") else [file]
    if "config.json" in there and not any(file.endswith(".safetensors") for file in there):
        pickles = [file for file in sorted(there) if file.endswith((".bin", ".pth", ".pt"))]
        has = f"only pickled weights ({pickles[0]}), which are never loaded" if pickles else "no weights"
        raise ModelError(
            f"'{name}' on the hub has {has}: choose a revision or a conversion of it with safetensors, or load it with"
            " transformers and save it with save_pretrained"
        )
    # An adapter, or a layout of its own: what reads the directory says what it is.
    return [file for file in there if "/" not in file and fnmatch(file, "adapter_model*.safetensors")]


def _shards(index: Path) -> list[str]:
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"'{index}' isn't an index of shards: remove it and run again")
    return sorted({str(shard) for shard in shards.values()})


def _check_space(hub: ModuleType, name: str, directory: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a download that doesn't fit, before its first byte, and say how much a large one is."""
    needed = sum(size for file, size in sizes.items() if not (directory / file).exists())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelError(
            f"'{name}' takes {needed / 1e9:.1f} GB, and the disk of the hub's cache '{hub.constants.HF_HUB_CACHE}' has"
            f" {free / 1e9:.1f} GB free: free some space, or set HF_HOME to a directory on a larger disk"
        )
    if needed > _LARGE:
        licence = next(
            (f" (licence {one.licence})" for one in ALIASES.values() if one.hub_id == name and one.licence), ""
        )
        print(f"fetching {needed / 1e9:.1f} GB of '{name}'{licence} into the hub's cache", file=sys.stderr)


def _cached(hub: ModuleType, name: str, revision: str, why: str, *, weights: bool) -> Path | None:
    """Return a checkpoint of the cache, and say that it is used; None if there is none.

    Raises:
        ModelError: Some of its files are missing.
    """
    home = Path(hub.constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"
    reference = home / "refs" / (revision or "main")
    snapshots = [path for path in (home / "snapshots").glob("*") if (path / "config.json").is_file()]
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
        snapshots = [path for path in snapshots if path.name == commit]
    elif revision:
        snapshots = [path for path in snapshots if path.name.startswith(revision)]
    if len(snapshots) != 1:
        return None
    directory = snapshots[0]
    short = directory.name[:7]
    missing = _missing(directory) if weights else []
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(
            f"{why}, and its cache holds only part of '{name}' (revision {short}): missing is"
            f" {missing[0]}{more}; run again where there is a network, or {how_to_download(name)}"
        )
    print(f"{why}: using revision {short} of '{name}' from its cache", file=sys.stderr)
    return directory


def _missing(directory: Path) -> list[str]:
    """Return the files of weights that a snapshot lacks; a link whose file isn't complete doesn't exist."""
    named = _json(directory / "config.json").get("transformers_weights")
    for file in (str(named),) if named else (SINGLE, INDEX):
        if (directory / file).is_file():
            files = _shards(directory / file) if file.endswith(".index.json") else []
            return [shard for shard in files if not (directory / shard).is_file()]
    # An adapter is no model, and another module says so better.
    return [] if (directory / "adapter_model.safetensors").is_file() else [str(named or SINGLE)]


def _json(file: Path) -> Mapping[str, Any]:
    try:
        raw = read_json(file)
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}
