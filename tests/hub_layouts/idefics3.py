"""HuggingFaceM4/Idefics3-8B-Llama3."""

from __future__ import annotations

from pathlib import Path

import torch

from hub_layouts.checkpoint_files import write_json, write_weights
from hub_layouts.layout import Layout
from hub_layouts.smolvlm import COMMON, SIDE, TURNS, preprocessor
from hub_layouts.tokenizer_files import BYTE_TOKENS, decoder_rows, write_llama3

_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<fake_token_around_image>", "<image>"]
_SPECIAL += ["<end_of_utterance>"]


def _idefics3(folder: Path, layers: int) -> None:
    """Write Idefics3: the template spells BOS, and the tokenizer puts one in front as well."""
    rows = write_llama3(folder, _SPECIAL)
    ids = {row["content"]: row["id"] for row in rows}
    write_json(
        folder,
        config={
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": ids["<image>"],
            "model_type": "idefics3",
            "scale_factor": 2,
            "text_config": {
                "architectures": ["VLlama3ForCausalLM"],
                "bos_token_id": ids["<|begin_of_text|>"],
                "eos_token_id": ids["<|end_of_text|>"],
                "hidden_size": 32,
                "intermediate_size": 48,
                "max_position_embeddings": 10240,
                "model_type": "llama",
                "num_attention_heads": 4,
                "num_hidden_layers": layers,
                "num_key_value_heads": 2,
                "pad_token_id": ids["<|eot_id|>"],
                "rms_norm_eps": 1e-05,
                "rope_theta": 500000.0,
                "torch_dtype": "bfloat16",
                "vocab_size": len(rows) + BYTE_TOKENS,
            },
            "torch_dtype": "bfloat16",
            "transformers_version": "4.45.0.dev0",
            "use_cache": True,
            "vision_config": {
                "hidden_size": 32,
                "image_size": SIDE,
                "intermediate_size": 48,
                "model_type": "idefics3",
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "patch_size": 8,
            },
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": ids["<|begin_of_text|>"],
            "eos_token_id": [ids["<|end_of_text|>"], ids["<end_of_utterance>"]],
            "pad_token_id": ids["<|eot_id|>"],
        },
        preprocessor_config=preprocessor("Idefics3"),
        processor_config={"image_seq_len": 16, "processor_class": "Idefics3Processor"},
        chat_template={"chat_template": "<|begin_of_text|>" + TURNS},
        tokenizer_config={
            "added_tokens_decoder": decoder_rows(rows),
            "additional_special_tokens": _SPECIAL[3:],
            "bos_token": "<|begin_of_text|>",
            "clean_up_tokenization_spaces": True,
            "eos_token": "<|end_of_text|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131072,
            "pad_token": "<|eot_id|>",
            "processor_class": "Idefics3Processor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_weights(folder, (), dtype=torch.bfloat16, silent=list(ids.values()), shards=4, seed=6)


LAYOUTS = (
    Layout(
        name="Idefics3-8B-Llama3",
        hub_id="HuggingFaceM4/Idefics3-8B-Llama3",
        family="idefics3",
        write=_idefics3,
        **COMMON,
    ),
)
