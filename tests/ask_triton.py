"""Ask a server with the client of a repository: ask_triton.py URL CLIENT.PY, requests as JSON on stdin.

A request is ``[images, prompt, max_new_tokens]``, images in base64; with ``--together`` all are asked at once. For each
it prints its pieces ``[[text, finish_reason], ...]``, or ``{"error": ..}``.
"""

import base64
import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor

from tritonclient.utils import InferenceServerException

spec = importlib.util.spec_from_file_location("client", sys.argv[2])
assert spec is not None
assert spec.loader is not None
client = importlib.util.module_from_spec(spec)
spec.loader.exec_module(client)


def ask(request: "tuple[list[str], str, int | None]") -> object:
    images, prompt, tokens = request
    try:
        return list(client.ask(sys.argv[1], [base64.b64decode(image) for image in images], prompt, tokens))
    except InferenceServerException as error:
        return {"error": error.message()}


requests = json.load(sys.stdin)
with ThreadPoolExecutor(len(requests) if "--together" in sys.argv else 1) as pool:
    print(json.dumps(list(pool.map(ask, requests))))
