"""Ask a server as VLMEvalKit's ``run.py --base-url`` does, with its own reading of options and its own client.

``python tests/ask_vlmevalkit.py QUESTIONS.json WORDS...``, in an environment that has VLMEvalKit: questions are pairs
of a picture's path and a text, words are those behind ``run.py``. Printed is one line of JSON: the answers to pictures
that are sent (``sent``, in base64) and to those that the server reads from the disk (``--local-media``).

Its ``__init__`` files and its benchmarks import everything that any model or benchmark needs, gigabytes of it. They are
left out: what reads options, makes a request and reads the answer is the package's.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

from PIL import Image

for name in ("vlmeval", "vlmeval.api"):
    package = types.ModuleType(name)
    package.__path__ = [str(importlib.metadata.distribution("ms-vlmeval").locate_file(name.replace(".", "/")))]
    sys.modules[name] = package
for name in (
    "config",
    "dataset",
    "dataset.video_dataset_config",
    "inference",
    "inference_mt",
    "inference_video",
    "utils",
    "utils.result_transfer",
):
    absent = types.ModuleType(f"vlmeval.{name}")
    absent.__getattr__ = lambda name: None  # type: ignore[method-assign]  # whatever is imported from it
    sys.modules[absent.__name__] = absent

from vlmeval.api.lmdeploy import LMDeployAPI  # noqa: E402 - after what it would import

sys.modules["vlmeval.api"].LMDeployAPI = LMDeployAPI  # type: ignore[attr-defined]  # what its __init__ hands on

from vlmeval.run import build_model_from_base_url, parse_args  # noqa: E402 - after what it would import
from vlmeval.smp import encode_image_to_base64  # noqa: E402 - after what it would import


def ask(questions: list[tuple[str, str]], words: list[str]) -> list[str]:
    sys.argv = ["run.py", *words]
    model = LMDeployAPI(**build_model_from_base_url(parse_args()))
    asked = [[{"type": "image", "value": path}, {"type": "text", "value": text}] for path, text in questions]
    return [model.generate(one) for one in asked]


def main(questions: list[tuple[str, str]], words: list[str]) -> dict[str, list[str]]:
    return {
        "of_data": ask(questions, words),
        "sent": [encode_image_to_base64(Image.open(path)) for path, _ in questions],
        "of_files": ask(questions, [*words, "--local-media"]),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:])))
