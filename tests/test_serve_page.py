"""The server's page in a real browser: choose a picture, ask, see the answer, what it took, and what is kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

import runtime_fixtures as fx
import serve_fixtures as sf
from browser_pipe import browsing
from PIL import Image, ImageChops

import lmmprune


def test_the_page_asks_and_shows(tmp_path: Path) -> None:
    made = sf.make_bundles(tmp_path)
    file = fx.save_picture(tmp_path / "p.png", 3, 5, 9, 15)
    with lmmprune.load(made / "pruned") as model:
        expected = model.ask(file, "hi?", max_new_tokens=12).text
    options = ("--max-tokens", 12, "--api-key", "secret")
    with sf.serving(made / "pruned", f"all={made / 'base'}", *options) as server, browsing(tmp_path / "b") as page:
        page.open(server.url)
        page.wait("document.readyState === 'complete'")
        page.choose("#file", file)
        page.run("question.value = 'hi?'; ask.click()")
        page.wait("answer.className === 'error'")
        assert "expected 'Authorization: Bearer KEY'" in page.run("answer.textContent")
        assert all("401" in said for said in page.console), page.console
        page.console.clear()
        page.run("key.value = 'secret'; ask.click()")
        page.wait("!kept.hidden && kept.naturalWidth")
        assert page.run("answer.textContent") == expected
        assert page.run("times.textContent").startswith("16 -> 4 image tokens; first token after ")
        options_shown = page.run("[...model.options].map(o => o.text)")
        assert options_shown == ["pruned: brightest, 4 of 16, float32", "all: not pruned, 16 of 16, float32"]
        assert page.run("performance.getEntriesByType('resource').every(r => r.name.includes(location.host))")
        assert not page.console, "no error, and nothing that its policy refused"

        # What the page shows is the drawing of ``show``.
        shown = server.ask("/lmmprune/show", sf.body("hi?"), Authorization="Bearer secret")[2]
        drawn = lmmprune.show(made / "pruned", sf.PICTURE, prompt="hi?").image
        assert (
            ImageChops.difference(Image.open(io.BytesIO(shown)).convert("RGB"), drawn.convert("RGB")).getbbox() is None
        )
        assert page.run("kept.naturalWidth") == drawn.width


def test_the_page_is_static_and_shut_to_others(tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "pruned", keep=4)
    with sf.serving(tmp_path / "pruned") as server:
        for path in ("/", "/page.css", "/page.js"):
            status, headers, said = server.ask(path)
            assert status == 200
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert b"//" not in said.replace(b"// ", b""), "no address of anything elsewhere"
        assert json.loads(server.ask("/v1/models")[2])["data"][0]["id"] == "pruned"
