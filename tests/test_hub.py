"""Checkpoints of the hub, fetched by its client from a server of our own, from its cache, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_hub import COMMIT, Hub, Repository, serve
from safetensors.numpy import load_file, save_file

from lmmprune.errors import ModelError
from lmmprune.models import hub as module
from lmmprune.models.aliases import ALIASES
from lmmprune.models.hub_errors import explain, how_to_download
from lmmprune.models.registry import locate, tiny_llava_dir

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
READ = {
    "config.json": b"{}",
    # The cache keeps equal contents once.
    "tokenizer.json": b"[]",
    "tokenizer.model": b"a",
    "chat_template.jinja": b"b",
    "additional_chat_templates/tools.jinja": b"c",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: b"a" * 100_000,
    SHARDS[1]: b"b" * 100,
}
NOT_READ = {
    "README.md": b"x",
    "modeling_it.py": b"x",
    "pytorch_model.bin": b"x",
    "consolidated.safetensors": b"x" * 1000,
    "consolidated-00001-of-00002.safetensors": b"x",
    "original/params.json": b"{}",
    "original/model.safetensors": b"x",
    "onnx/model.onnx": b"x",
    "onnx/config.json": b"{}",
    "model.fp16.safetensors": b"x",
}
ALL = READ | NOT_READ
SINGLE = {"config.json": b"{}", "model.safetensors": b"x", SHARDS[0]: b"x", SHARDS[1]: b"x"}

CODE = """
import json, sys
from lmmprune.errors import LmmpruneError
from lmmprune.models.registry import fetch, locate
for word in sys.argv[1:]:
    name, _, light = word.partition(" ")
    try:
        print(json.dumps(str(fetch(locate(name), weights=not light))))
    except LmmpruneError as error:
        print(json.dumps({type(error).__name__: str(error)}))
"""


class Client:
    """Processes that fetch, with a cache of their own (the client reads its environment when it is imported)."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**clean, "HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, **bars, **more}

    def fetch(self, *names: str, **more: str) -> tuple[list[Any], list[str]]:
        """Return where each lies, or how it is refused, and the lines of stderr."""
        command = [sys.executable, "-c", CODE, *names]
        environment = self.environment(**more)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()

    def fetched(self) -> list[str]:
        """Return what was fetched since the last call."""
        found = sorted(self.hub.fetched)
        self.hub.fetched.clear()
        return found


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repositories = {
        "org/sharded": Repository(files=ALL),
        "org/single": Repository(files=SINGLE | NOT_READ),
        "org/named": Repository(
            files={**SINGLE, "config.json": b'{"transformers_weights": "x.safetensors"}', "x.safetensors": b"x"}
        ),
        "org/bin": Repository(files={"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"x"}),
        "org/torn": Repository(files={name: data for name, data in ALL.items() if name != SHARDS[1]}),
        "org/empty": Repository(files={"config.json": b"{}"}),
        "org/gated": Repository(files=ALL, gated=True),
        "org/private": Repository(files=ALL, private=True),
        "org/secret": Repository(files=ALL, token="good"),
        "org/breaks": Repository(files=ALL, hangs_up=SHARDS[0]),
    }
    with serve(repositories) as found:
        yield found


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    hub.fetched.clear()
    return Client(hub, tmp_path / "home")


def files(directory: str) -> set[str]:
    root = Path(directory)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_what_transformers_reads_is_fetched_and_nothing_else(client: Client) -> None:
    (light, full, again, single, named), said = client.fetch(
        "org/sharded light", "org/sharded", "org/sharded@v1", "org/single", "org/named"
    )
    assert said == []
    assert light == full == again
    assert Path(full).name == COMMIT
    assert files(full) == READ.keys()
    assert (Path(full) / SHARDS[0]).read_bytes() == READ[SHARDS[0]]
    assert files(single) == {"config.json", "model.safetensors"}
    assert files(named) == {"config.json", "x.safetensors"}
    # Each once, whatever was asked for.
    assert client.fetched() == sorted([*READ, "config.json", "config.json", "model.safetensors", "x.safetensors"])


def test_counting_and_dummies_fetch_no_weights(client: Client) -> None:
    (directory,), _ = client.fetch("org/sharded light")
    assert files(directory) == {name for name in READ if not name.endswith(".safetensors")}


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_the_cache_serves_without_a_network(client: Client, offline: dict[str, str]) -> None:
    (online,), _ = client.fetch("org/sharded")
    client.fetched()
    (found, *others), said = client.fetch("org/sharded", f"org/sharded@{COMMIT[:9]}", "org/sharded light", **offline)
    assert [found, *others] == [online] * 3
    assert set(said) == {f"the hub can't be reached: using revision {COMMIT[:7]} of 'org/sharded' from its cache"}
    assert client.fetched() == []


def test_a_cache_that_lacks_a_shard_says_which(client: Client) -> None:
    (directory,), _ = client.fetch("org/sharded")
    # As after a download that was ended: the link's file isn't there yet.
    (Path(directory) / SHARDS[1]).resolve().unlink()
    (refused, light), _ = client.fetch("org/sharded", "org/sharded light", HF_HUB_OFFLINE="1")
    assert light == directory
    assert refused["ModelError"].startswith(
        "the hub can't be reached, and its cache holds only part of 'org/sharded' (revision 0123456): missing is "
        f"{SHARDS[1]}; run again where there is a network, or download it with: hf download org/sharded --include "
    )
    (whole,), _ = client.fetch("org/sharded")
    assert files(whole) == READ.keys()


def test_configuration_alone_is_part_of_a_checkpoint(client: Client) -> None:
    client.fetch("org/single light")
    (refused,), _ = client.fetch("org/single", HF_HUB_OFFLINE="1")
    assert "missing is model.safetensors; run again where" in refused["ModelError"]


def test_refusals_of_the_hub_say_what_to_do(client: Client) -> None:
    names = [
        "org/gated",
        "org/private",
        "org/sharded@v9",
        "org/bin",
        "org/empty",
        "org/torn",
        "llava-hf/llava-1.5-7b",
        "me/llava-1.5-7b",
    ]
    found, said = client.fetch(*names)
    assert said == []
    gated, private, revision, pickled, empty, torn, typo, alias = [row["ModelError"] for row in found]
    url = client.hub.url
    assert gated == (
        "there is no directory 'org/gated' here, and the model 'org/gated' of the hub is gated "
        f"({url}/org/gated): accept the licence at its page, then: hf auth login (or set HF_TOKEN), and run again"
    )
    assert "'org/private' of the hub doesn't exist, or is private" in private
    assert "hf auth login" in private
    assert f"has no such revision: see {url}/org/sharded" in revision
    assert "only pickled weights (pytorch_model-00001-of-00002.bin), which are never loaded" in pickled
    assert "'org/empty' on the hub has no weights" in empty
    assert f"names {SHARDS[1]} (and 0 more) in its index, and has no such file" in torn
    assert "doesn't exist (did you mean 'llava-hf/llava-1.5-7b-hf'?)" in typo
    assert "doesn't exist (did you mean the alias 'llava-1.5-7b'?)" in alias
    assert all("\n" not in row["ModelError"] for row in found)


def test_tokens(client: Client) -> None:
    (bad,), _ = client.fetch("org/secret", HF_TOKEN="bad")
    assert bad["ModelError"] == (
        "the hub refuses your token for 'org/secret' (401): hf auth login with a valid one, or unset HF_TOKEN for what "
        "is public"
    )
    (good,), _ = client.fetch("org/secret", HF_TOKEN="good")
    assert files(good) == READ.keys()
    (cached,), said = client.fetch("org/secret", HF_TOKEN="bad")
    assert cached == good
    assert said == [f"the hub refuses to show it (401): using revision {COMMIT[:7]} of 'org/secret' from its cache"]


def test_a_hub_that_hangs_up(client: Client) -> None:
    (refused,), said = client.fetch("org/breaks")
    assert refused["ModelError"].startswith(
        "fetching 'org/breaks' broke off (RemoteProtocolError: peer closed connection"
    )
    assert refused["ModelError"].endswith("run again, what is fetched already is kept")
    assert said == []
    client.hub.repositories["org/breaks"].hangs_up = None
    (whole,), _ = client.fetch("org/breaks")
    assert files(whole) == READ.keys()


def test_without_a_network_and_a_cache_the_command_is_named_in_full(client: Client) -> None:
    (known, unknown), _ = client.fetch("llava-1.5-7b", "models/llava-7b", HF_HUB_OFFLINE="1")
    assert known["ModelError"] == (
        f"'llava-hf/llava-1.5-7b-hf' isn't in the hub's cache '{client.home}/hub', and the hub can't be reached "
        "(HF_HUB_OFFLINE is set): where there is a network, download it with: hf download llava-hf/llava-1.5-7b-hf "
        "--include 'model*.safetensors' --include '*.json' --include '*.jinja' --include tokenizer.model --local-dir "
        "llava-1.5-7b-hf (14.1 GB, licence llama2), and give the directory: --model ./llava-1.5-7b-hf; without its "
        "weights: --model llava-1.5-7b --weights dummy"
    )
    # It may have been meant as a path.
    assert unknown["ModelError"].startswith(
        "there is no directory 'models/llava-7b' here, and the model 'models/llava-7b'"
    )


def test_the_command_that_is_named_downloads_what_is_read(client: Client, tmp_path: Path) -> None:
    line = how_to_download("org/sharded")
    command = line.split("download it with: ")[1].split(", and give")[0]
    program = Path(sys.executable).with_name("hf")
    environment = client.environment(PATH=f"{program.parent}:{os.environ['PATH']}")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert line.endswith("--model ./sharded")
    found = {name for name in files(str(tmp_path / "sharded")) if not name.startswith(".cache")}
    assert found >= READ.keys()
    # Patterns of the command don't end at a slash: some small files come along, no weights and no code.
    assert {name for name in found - READ.keys() if not name.endswith(".json")} == {"model.fp16.safetensors"}


def test_a_model_of_the_hub_end_to_end(client: Client, tmp_path: Path) -> None:
    """Tiny-llava in two shards, without and with its weights, by the command line and by what reads weights."""
    tensors = load_file(tiny_llava_dir() / "model.safetensors")
    names = sorted(tensors)
    parts = {SHARDS[0]: names[:10], SHARDS[1]: names[10:]}
    for shard, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in tiny_llava_dir().glob("*.json*"):
        shutil.copy(file, tmp_path)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    client.hub.repositories["me/tiny"] = Repository(files=content | NOT_READ)
    code = """
import contextlib
from lmmprune.compiler.cli import main
from lmmprune.models.source import resolve
with contextlib.suppress(SystemExit):
    main(["flops", "--model", "me/tiny", "--keep", "72"])
print("then", len(resolve("me/tiny").entries))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=client.environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "me/tiny: 4 decoder layers" in done.stdout
    assert done.stdout.endswith(f"then {len(names)}\n")
    # Counting took everything else; then come the weights.
    assert client.hub.fetched[-2:] in ([*SHARDS], [*reversed(SHARDS)])
    assert not {*SHARDS} & {*client.hub.fetched[:-2]}
    (found,), _ = client.fetch("me/tiny", HF_HUB_OFFLINE="1")
    assert sum(len(load_file(Path(found) / shard)) for shard in SHARDS) == len(names)


def test_a_disk_that_is_too_small_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake: Any = SimpleNamespace(constants=SimpleNamespace(HF_HUB_CACHE="/cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    sizes = {SHARDS[0]: 4_000_000_000, SHARDS[1]: 2_000_000_000}
    with pytest.raises(
        ModelError, match=r"'o/m' takes 6\.0 GB, and the disk of .*'/cache' has 5\.0 GB free: free some"
    ):
        module._check_space(fake, "o/m", tmp_path, sizes)
    assert capsys.readouterr().err == ""
    (tmp_path / SHARDS[1]).touch()  # there already
    module._check_space(fake, "llava-hf/llava-1.5-7b-hf", tmp_path, sizes)
    said = "fetching 4.0 GB of 'llava-hf/llava-1.5-7b-hf' (licence llama2) into the hub's cache\n"
    assert capsys.readouterr().err == said


def test_a_disk_that_fills_up_says_so() -> None:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors

    full = OSError(28, "No space left on device")
    wrapped = RuntimeError("a worker failed")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        assert "is full: free some space, or set HF_HOME" in str(explain(error, huggingface_hub, "o/m", began=True))
    long = ConnectionError("x" * 1000)
    assert "x" * 1000 in str(explain(long, huggingface_hub, "o/m")), "no message is cut"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./llava", "there is no directory './llava', and no model of the hub can be called so (owner/name)"),
        ("/models/llava", "there is no directory '/models/llava'"),
        ("a/b/c", "there is no directory 'a/b/c'"),
        ("llava-1.5-7", "no model 'llava-1.5-7': not a directory, an alias or a hub id; did you mean 'llava-1.5-7b'?"),
    ],
)
def test_what_no_hub_can_have(model: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        locate(model)
    assert message in str(caught.value)


def test_sizes_and_licences_are_of_known_checkpoints() -> None:
    for alias in ALIASES.values():
        assert alias.size is None or (alias.hub_id and 10**8 < alias.size < 10**11)
        assert alias.licence is None or alias.licence in ("llama2", "apache-2.0", "qwen-research")
    assert "(7.5 GB, licence qwen-research)" in how_to_download("Qwen/Qwen2.5-VL-3B-Instruct")
