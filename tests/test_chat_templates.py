"""Prompts of checkpoints, token for token against the processor that transformers makes of the same files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import prompt_checkpoints as pc
import pytest

from lmmprune.compiler.assets.chat_template import find_chat_template
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.errors import InputError, ModelError

QUESTIONS = ("what is this?", " a ", "é\n\nb")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pc.bundle(tmp_path_factory.mktemp("chat"))


def same(folder: Path, bundle: Bundle, **options: Any) -> pc.Assets:
    """The bundle's prompts are transformers'; return what an export says."""
    assets, prompter = pc.export(folder, bundle)
    for question in QUESTIONS:
        assert prompter.encode(question).input_ids[0].tolist() == pc.theirs(folder, question, **options)
    return assets


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("written", ["", "<s>", "{{ bos_token }}", " {{ bos_token }}", "{{ eos_token }}"])
def test_no_prompt_begins_twice(bos: bool, written: str, bundle: Bundle, tmp_path: Path) -> None:
    files = {"chat_template.jinja": written + pc.PARTS + "{{ eos_token }}"}
    folder = pc.checkpoint(tmp_path / "model", files, tokenizer=pc.letters(bos=bos))
    assets = same(folder, bundle)
    assert assets.prompt.special_tokens is (written not in ("<s>", "{{ bos_token }}"))
    assert assets.prompt.template.endswith("</s>")


NAMED = {
    "named": {"content": "<end>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
    "plain": "<end>",
}


@pytest.mark.parametrize("form", sorted(NAMED))
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_come_from_either_file(form: str, file: str, bundle: Bundle, tmp_path: Path) -> None:
    token: Any = {**NAMED[form], "__type": "AddedToken"} if isinstance(NAMED[form], dict) else NAMED[form]
    files = {
        file: {"sep_token": token if file == "tokenizer_config.json" else NAMED[form]},
        "chat_template.jinja": "{{ bos_token }}{{ sep_token }}{{ unk_token }}" + pc.PARTS,
    }
    assets = same(pc.checkpoint(tmp_path / "model", files), bundle)
    assert assets.prompt.template.startswith("<s><end><unk>user: <image>\n")


PLACES = {
    "processor_config.json": {"chat_template": "p" + pc.PARTS},
    "chat_template.json": {"chat_template": "l" + pc.PARTS},
    "chat_template.jinja": "j" + pc.PARTS + "\n",
    "additional_chat_templates/default.jinja": "d" + pc.PARTS,
    "additional_chat_templates/tools.jinja": "t" + pc.PARTS,
    "tokenizer_config.json": {"chat_template": "c" + pc.PARTS},
}


@pytest.mark.parametrize(
    "there",
    [
        ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"),
        ("chat_template.json", "chat_template.jinja"),
        ("chat_template.jinja", "additional_chat_templates/tools.jinja", "tokenizer_config.json"),
        ("chat_template.jinja", "additional_chat_templates/default.jinja"),
        ("additional_chat_templates/default.jinja", "additional_chat_templates/tools.jinja"),
        ("chat_template.json", "tokenizer_config.json"),
    ],
)
def test_the_template_is_transformers_choice(there: tuple[str, ...], bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {name: PLACES[name] for name in there})
    assets = same(folder, bundle)
    assert (assets.warnings, assets.prompt.origin) == ((), there[0] if "default" not in there[0] else _FOLDER)


_FOLDER = "additional_chat_templates"


@pytest.mark.parametrize(
    "found",
    [
        pc.PARTS,
        [{"name": "tools", "template": "t"}, {"name": "default", "template": pc.PARTS}],
        {"default": pc.PARTS, "tools": "t"},
    ],
)
def test_the_tokenizers_template_in_each_form(found: Any, bundle: Bundle, tmp_path: Path) -> None:
    """The processor itself doesn't read it: it is asked with it."""
    folder = pc.checkpoint(tmp_path / "model", {"tokenizer_config.json": {"chat_template": found}})
    assert same(folder, bundle, chat_template=pc.PARTS).prompt.origin == "tokenizer_config.json"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "x"}]}},
            "tokenizer_config.json has chat templates by the names rag, and none is called 'default': give one with",
        ),
        (
            {f"{_FOLDER}/tools.jinja": "x", f"{_FOLDER}/rag.jinja": "y"},
            f"{_FOLDER} has chat templates by the names rag, tools",
        ),
        ({"chat_template.json": {"chat_template": "x"}, f"{_FOLDER}/a.jinja": "y"}, "which transformers refuses"),
        ({"chat_template.json": {"chat_template": 3}}, "the chat template in chat_template.json is int"),
        ({"chat_template.json": "{"}, "can't be read"),
    ],
)
def test_what_is_no_default_template_is_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", files)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        find_chat_template(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "strip"),
    [
        (pc.PARTS.replace("p['text']", "p['text'] | trim"), "both"),
        (pc.PARTS.replace("p['text']", "p['text'].rstrip()"), "right"),
        (pc.PARTS.replace("p['text']", "p['text'].lstrip()"), "left"),
        ("{% generation %}" + pc.PARTS + "{% endgeneration %}", ""),
        ("{% if tools is not none %}tools{% endif %}{% if messages[0]['role'] == 'x' %}"
         "{{ raise_exception('no') }}{% endif %}" + pc.PARTS, ""),
        (pc.PARTS.replace("p['type'] == 'image'", "'image' in p"), ""),
    ],
)  # fmt: skip
def test_templates_are_rendered_as_transformers_does(template: str, strip: str, bundle: Bundle, tmp_path: Path) -> None:
    assets = same(pc.checkpoint(tmp_path / "model", {"chat_template.jinja": template}), bundle)
    assert (assets.prompt.strip, assets.warnings) == (strip, ())


def test_a_template_that_takes_texts_only_gets_the_picture_inside(bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": pc.TEXT_ONLY})
    assets, prompter = pc.export(folder, bundle)
    assert assets.prompt.template == "user: <image>\n{prompt}<end>assistant:"
    assert len(assets.warnings) == 1
    assert "takes texts only" in assets.warnings[0]
    assert "--template" in assets.warnings[0]
    # Its processor takes the same text with the placeholder in it.
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"role": "user", "content": "<image>\nwhat?"}], add_generation_prompt=True)
    expected = processor(text=text, images=pc.Image.new("RGB", (9, 7)))["input_ids"][0]
    assert prompter.encode("what?").input_ids[0].tolist() == expected


def test_text_parts_alone_get_the_picture_too(bundle: Bundle, tmp_path: Path) -> None:
    assets, _ = pc.export(pc.checkpoint(tmp_path / "model", {"chat_template.jinja": pc.TEXT_PARTS}), bundle)
    assert (assets.prompt.template, len(assets.warnings)) == ("q: <image>\n{prompt} a:", 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only tools') }}", "can't be rendered (TemplateError: only tools)"),
        ("{% for", "can't be rendered (TemplateSyntaxError"),
        ("hello", "renders to \"hello\", expected one picture ('<image>') and one question: give another one"),
        (pc.PARTS + pc.PARTS, "renders to"),
    ],
)
def test_templates_without_a_place_are_refused(template: str, message: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": template})
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        pc.export(folder, bundle)
    assert "--template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_template_is_said(bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {})
    assets, _ = pc.export(folder, bundle)
    (warning,) = assets.warnings
    assert "has no chat template (early revisions of LLaVA-1.5 on the hub have none)" in warning
    assert "'USER: <image>\\n{prompt} ASSISTANT:'" in warning
    assert "--template" in warning
    assert assets.prompt.origin == "built-in"


def test_the_date_and_a_changed_question_are_said(bundle: Bundle, tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y') }}" + pc.PARTS.replace("p['text']", "p['text'] | replace('\\n', ' ')")
    assets, _ = pc.export(pc.checkpoint(tmp_path / "model", {"chat_template.jinja": template}), bundle)
    assert [" ".join(line.split()[5:8]) for line in assets.warnings] == ["changes what some", "writes today's date:"]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("q: <image>\\n{prompt} a:", "q: <image>\n{prompt} a:"),
        ("FILE:q: <image>\n{prompt}\n a:\n", "q: <image>\n{prompt}\n a:"),
        (pc.PARTS, "user: <image>\n{prompt} assistant:"),
        ("FILE:" + pc.PARTS + "\n", "user: <image>\n{prompt} assistant:"),
        (pc.TEXT_ONLY, "user: <image>\n{prompt}<end>assistant:"),
    ],
)
def test_a_given_template(option: str, expected: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": "{{ raise_exception('unused') }}"})
    if option.startswith("FILE:"):
        (tmp_path / "mine.jinja").write_text(option.removeprefix("FILE:"), encoding="utf-8")
        option = str(tmp_path / "mine.jinja")
    assets, _ = pc.export(folder, bundle, option)
    assert (assets.prompt.template, assets.prompt.origin) == (expected, "--template")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("missing.jinja", "--template 'missing.jinja' is neither a file nor a template"),
        ("{prompt}", "expected '{prompt}' once, for the question, and '<image>' once"),
        ("<image>{prompt}{prompt}", "once"),
        ("<image><image>{prompt}", "once"),
    ],
)
def test_a_given_template_without_places_is_refused(option: str, message: str, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        pc.export(pc.checkpoint(tmp_path / "model", {}), bundle, option)


def test_padding_and_truncation_are_switched_off(bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(
        tmp_path / "model", {"chat_template.jinja": pc.PARTS}, tokenizer=pc.letters(bos=True, pad=True)
    )
    clean = pc.checkpoint(tmp_path / "clean", {"chat_template.jinja": pc.PARTS})
    _, prompter = pc.export(folder, bundle)
    question = "what is in this picture? " * 3
    assert prompter.encode(question).input_ids[0].tolist() == pc.theirs(clean, question)
    raw = (folder / "assets" / "tokenizer.json").read_text(encoding="utf-8")
    assert re.search(r'"padding": *null', raw)
    assert re.search(r'"truncation": *null', raw)


@pytest.mark.parametrize("question", ["a\udcff", "\ud800", "x\udfffy"])
def test_half_a_character_is_refused(question: str, bundle: Bundle, tmp_path: Path) -> None:
    _, prompter = pc.export(pc.checkpoint(tmp_path / "model", {}), bundle)
    with pytest.raises(InputError, match="which isn't valid UTF-8") as caught:
        prompter.encode(question)
    str(caught.value).encode()


TURNS = {
    "as it is": pc.PARTS,
    "ends of answers": pc.PARTS.replace("{{ p['text'] }}", "{{ p['text'] | trim }}"),
    "an end token": pc.PARTS.replace("{% endfor %}{% endfor %}", "{% endfor %}{{ eos_token }}{% endfor %}"),
}


@pytest.mark.parametrize("form", TURNS)
def test_conversations_are_those_of_the_processor(form: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = pc.checkpoint(tmp_path / "model", {"chat_template.jinja": TURNS[form]})
    assets, prompter = pc.export(folder, bundle)
    assert assets.prompt.answer_strip == ("both" if form == "ends of answers" else "")
    for words in (("what?", "a b", "why?"), (" a ", " b\n", " c "), ("a", "b", "c", "d\n\n?", "é")):
        assert prompter.encode(words).input_ids[0].tolist() == pc.theirs(folder, *words)


ONE_TURN = {
    "leaves answers out": "{% for m in messages if m['role'] == 'user' %}" + pc.PARTS.partition("%}")[2],
    "refuses": pc.PARTS + "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}",
    "numbers its turns": pc.PARTS.replace(
        "{{ m['role'] }}", "{{ m['role'] }}{{ loop.index if loop.index > 1 else '' }}"
    ),
    "changes answers": pc.PARTS.replace(
        "{{ p['text'] }}", "{{ p['text'] | upper if m['role'] != 'user' else p['text'] }}"
    ),
}


@pytest.mark.parametrize("form", ONE_TURN)
def test_templates_that_no_further_turn_describes(form: str, bundle: Bundle, tmp_path: Path) -> None:
    assets, prompter = pc.export(pc.checkpoint(tmp_path / "m", {"chat_template.jinja": ONE_TURN[form]}), bundle)
    assert assets.prompt.turn == assets.prompt.answer_strip == ""
    with pytest.raises(InputError, match="takes one question"):
        prompter.encode(("a", "b", "c"))
    with pytest.raises(InputError, match="begins and ends with a question"):
        prompter.encode(("a", "b"))
