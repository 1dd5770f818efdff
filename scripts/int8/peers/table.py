"""The tables of one model."""

from __future__ import annotations

from typing import Any


def markdown(title: str, cell: dict[str, Any]) -> list[str]:
    """Return the tables of one model."""
    lines = [f"## {title}", ""]
    lines += ["| tool | quantize, s | peak memory, MB (imports alone) | file, MB | right, % |", "|---|---|---|---|---|"]
    if "accuracy_float32" in cell:
        lines.append(f"| float32 | | | | {100 * cell['accuracy_float32']:.1f} |")
    for name, row in cell["tools"].items():
        if "seconds" not in row:
            lines.append(f"| {name} | {row['note']} | | | |")
            continue
        size = sum(part.get("bytes", 0) for part in row["parts"].values()) / 1e6
        right = f"{100 * row['accuracy']:.1f}" if "accuracy" in row else "-"
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {row['peak_mb']:.0f} ({row['peak_mb_before']:.0f}) |"
            f" {size:.1f} | {right} |"
        )
    for part, keys in (("vision", ("vision",)), ("decoder", ("prefill", "decode step"))):
        heads = "".join(f" {key}: ms | {key}: of float32 |" for key in keys)
        lines += ["", f"{part.capitalize()} graph:", ""]
        lines += [f"| tool | output error | products in float |{heads} lint |", "|---" * (4 + 2 * len(keys)) + "|"]
        for name in ("float32", *cell["tools"]):
            row = {} if name == "float32" else cell["tools"][name]["parts"].get(part, {})
            times = [cell["latency"][key].get(name) for key in keys]
            if name != "float32" and "error" not in row:  # not made, or refused
                note = row.get("note") or cell["tools"][name].get("note", "")
                lines.append(f"| {name} | {note} |" + " |" * (2 + 2 * len(keys)))
                continue
            cells = "".join(
                f" {t['ms']:.2f} ({t['quartiles'][0]:.2f}-{t['quartiles'][1]:.2f}) | {t['ratio']:.2f} |"
                if t
                else " only with its optimizer off | - |"
                for t in times
            )
            said = ", ".join(f"{count} {rule}" for rule, count in row.get("findings", {}).items()) or "0"
            error = f"{row['error']:.4f}" if row else "0"
            lines.append(f"| {name} | {error} | {row.get('float_weights', 'all')} |{cells} {said} |")
    notes = [
        f"* {name}, {part}: {text.removesuffix('; ')}"
        for name, row in cell["tools"].items()
        for part, found in row["parts"].items()
        if (text := found["note"])
    ]
    return [*lines, "", "What went wrong on the way:", "", *notes, ""]
