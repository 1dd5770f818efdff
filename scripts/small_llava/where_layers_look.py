"""Where small-llava's layers look: how well the attention that methods score by tells objects from background.

python scripts/small_llava/where_layers_look.py -o docs/results/where_layers_look

AUC: the chance that a patch with ink of an object has a larger score than a patch of the background; 0.5 knows nothing.
"""

import sys
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor, LlavaForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "tiny_llava"), str(ROOT / "scripts" / "small_llava")]

import results  # noqa: E402  # found by the path above
from small_llava.heldout import heldout  # noqa: E402

MODEL = ROOT / "models" / "small_llava"
PAGE = ROOT / "docs" / "results" / "accuracy.md"
Rows = dict[str, list[list[float]]]


def auc(scores: NDArray[np.float32], objects: NDArray[np.bool_]) -> float:
    """Return how often a patch of an object scores higher than one of the background; ties count half."""
    ours, theirs = scores[objects][:, None], scores[~objects][None]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


@torch.no_grad()
def measure(scenes: int) -> Rows:
    """Return score -> layer -> the AUC of every question or picture.

    Scores: in the encoder what patches receive, and what CLS gives; in the decoder what the question's tokens give on
    average, and what its last token gives.
    """
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, attn_implementation="eager", dtype=torch.float32)
    model.train(False)
    processor = AutoProcessor.from_pretrained(MODEL)  # type: ignore[no-untyped-call]  # untyped upstream
    found: Rows = {name: [] for name in ("received", "cls", "text", "last")}

    def note(name: str, layer: int, scores: torch.Tensor, objects: NDArray[np.bool_]) -> None:
        if layer == len(found[name]):
            found[name].append([])
        found[name][layer].append(auc(scores.numpy(), objects))

    for asked in islice(heldout(), scenes):
        image, objects = asked.scene.image, (asked.scene.owners >= 0).ravel()
        for question in asked.questions:
            template = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
            text = processor.apply_chat_template(template, add_generation_prompt=True)
            inputs = processor(images=image.convert("RGB"), text=text, return_tensors="pt")
            visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
            out = model(**inputs, output_attentions=True)
            for layer, attention in enumerate(out.attentions):
                rows = attention[0].mean(0)[int(visual[-1]) + 1 :, visual]
                note("text", layer, rows.mean(0), objects)
                note("last", layer, rows[-1], objects)
        tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True)
        for layer, attention in enumerate(tower.attentions):
            patches = attention[0].mean(0)
            note("received", layer, patches[1:, 1:].sum(0) - patches[1:, 1:].diagonal(), objects)
            note("cls", layer, patches[0, 1:], objects)
    return found


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Without a suffix.")
@click.option("--scenes", default=50, show_default=True, help="Held-out scenes, eight questions each.")
def main(output: Path, scenes: int) -> None:
    """Write the AUC of every layer and score."""
    means = {name: [float(np.mean(layer)) for layer in layers] for name, layers in measure(scenes).items()}
    deepest = max(map(len, means.values()))
    words = {
        "received": "encoder: received from patches",
        "cls": "encoder: given by CLS",
        "text": "decoder: given by the question, mean",
        "last": "decoder: given by its last token",
    }
    lines = ["| AUC in layer | " + " | ".join(map(str, range(deepest))) + " |", "|---|" + "--:|" * deepest]
    for name, layers in means.items():
        cells = [f"{value:.2f}" for value in layers] + [""] * (deepest - len(layers))
        lines.append(f"| {words[name]} | " + " | ".join(cells) + " |")
    results.write(output, means, "\n".join(lines), page=PAGE)


if __name__ == "__main__":
    main()
