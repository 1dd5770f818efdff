"""Run lmms-eval as its users do, several times in one process: what it imports takes longer than all answers.

``python tests/ask_lmms_eval.py ORDER.json ANSWER.json``, in an environment that has lmms-eval. The order holds

* ``commands``: words behind ``python -m lmms_eval``; the answer has what each printed;
* ``arguments``: of models that are refused, ``--model_args`` and options; the answer has the messages;
* ``bundle``, ``tasks``, ``folder``: tasks of a folder that a bundle refuses; the answer has the messages.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def command(words: list[str]) -> str:
    """Do what ``python -m lmms_eval`` does, and return what it prints."""
    sys.argv = ["lmms_eval", *words]
    held = io.StringIO()
    with contextlib.redirect_stdout(held), contextlib.redirect_stderr(held), contextlib.suppress(SystemExit):
        runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
    return held.getvalue()


def refusal(call: Callable[[], object]) -> str:
    """Return the message of an error of ours."""
    from lmmprune.errors import LmmpruneError

    try:
        call()
    except LmmpruneError as error:
        return str(error)
    return ""


def main(order: dict[str, Any]) -> dict[str, list[str]]:
    printed = [command(words) for words in order["commands"]]
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    make = get_model("lmmprune").create_from_arg_string
    manager = TaskManager(include_path=order["folder"], include_defaults=False, model_name="lmmprune")
    model = make(f"bundle={order['bundle']}")
    return {
        "commands": printed,
        "arguments": [refusal(lambda given=given: make(*given)) for given in order["arguments"]],
        "tasks": [
            refusal(lambda task=task: simple_evaluate(model=model, tasks=[task], task_manager=manager))
            for task in order["tasks"]
        ],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
