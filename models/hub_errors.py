"""What went wrong with the hub, in one line with what to do."""

from __future__ import annotations

import difflib
import errno
import shlex
from collections.abc import Iterator
from types import ModuleType

from lmmprune.errors import ModelError
from lmmprune.models.aliases import ALIASES

_FULL = (errno.ENOSPC, errno.EDQUOT)
_INCLUDED = ("model*.safetensors", "*.json", "*.jinja", "tokenizer.model")


def how_to_download(name: str, *, weights: bool = True) -> str:
    """Return the command that downloads what is read of a checkpoint, its size and licence, and what to do then."""
    folder = name.split("/")[-1]
    patterns = [word for pattern in _INCLUDED[0 if weights else 1 :] for word in ("--include", pattern)]
    command = shlex.join(["hf", "download", name, *patterns, "--local-dir", folder])
    alias = next((alias for alias in ALIASES.values() if alias.hub_id == name), None)
    facts = []
    if alias is not None and alias.size is not None and weights:
        facts.append(f"{alias.size / 1e9:.1f} GB")
    if alias is not None and alias.licence is not None:
        facts.append(f"licence {alias.licence}")
    about = f" ({', '.join(facts)})" if facts else ""
    return f"download it with: {command}{about}, and give the directory: --model ./{folder}"


def explain(error: Exception, hub: ModuleType, name: str, *, weights: bool = True, began: bool = False) -> ModelError:
    """Return the refusal for what the hub's client raised.

    Args:
        error: What it raised.
        hub: The client.
        name: ``owner/name``.
        weights: Whether the weights were wanted.
        began: Whether the repository had been found, and files were being fetched.
    """
    errors = hub.errors
    page = f"{hub.constants.ENDPOINT}/{name}"
    known = any(alias.hub_id == name for alias in ALIASES.values())
    what = f"'{name}'" if known else f"there is no directory '{name}' here, and the model '{name}' of the hub"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        login = (
            "the account of your token has no access to it yet: accept the licence at the page with that account"
            if hub.get_token()
            else "accept the licence at its page, then: hf auth login (or set HF_TOKEN)"
        )
        return ModelError(f"{what} is gated ({page}): {login}, and run again")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{what} has no such revision: see {page}, and give --model {name}@REVISION or {name} alone")
    if isinstance(error, errors.RepositoryNotFoundError):
        near = _near(name)
        return ModelError(
            f"{what} doesn't exist{near}, or is private: look at {page}; a private one needs the token of an account"
            " that may read it: hf auth login (or set HF_TOKEN)"
        )
    if status in (401, 403):
        token = "refuses your token" if hub.get_token() else "wants a token"
        return ModelError(
            f"the hub {token} for '{name}' ({status}): hf auth login with a valid one, or unset HF_TOKEN for what is"
            " public"
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{what} can't be a name of the hub: {_line(error)}")
    if any(isinstance(one, OSError) and one.errno in _FULL for one in _chain(error)):
        return ModelError(
            f"the disk of the hub's cache '{hub.constants.HF_HUB_CACHE}' is full: free some space, or set HF_HOME to a"
            " directory on a larger disk; what is fetched already is kept"
        )
    if began:
        return ModelError(f"fetching '{name}' broke off ({_cause(error)}): run again, what is fetched already is kept")
    alias = next((alias for alias, entry in ALIASES.items() if entry.hub_id == name and entry.config), None)
    dummy = f"; without its weights: --model {alias} --weights dummy" if alias else ""
    unreached = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else _cause(error)
    return ModelError(
        f"{what} isn't in the hub's cache '{hub.constants.HF_HUB_CACHE}', and the hub can't be reached ({unreached}):"
        f" where there is a network, {how_to_download(name, weights=weights)}{dummy}"
    )


def _near(name: str) -> str:
    """Return the known checkpoint that a name may be a typo of."""
    ids = {str(alias.hub_id): str(alias.hub_id) for alias in ALIASES.values() if alias.hub_id}
    lowered = {key.lower(): value for key, value in ids.items()}
    if found := difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.8):
        return f" (did you mean '{lowered[found[0]]}'?)"
    if found := difflib.get_close_matches(name.split("/")[-1].lower(), ALIASES, n=1, cutoff=0.8):
        return f" (did you mean the alias '{found[0]}'?)"
    return ""


def _cause(error: BaseException) -> str:
    """Return the first cause in the client's words, whole."""
    return _line(list(_chain(error))[-1])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
