"""The page in a browser, by clicks and keys: draw, paint, tokens, compare; wide and on a phone.

With `TESSELLA_SCREENSHOTS=FOLDER` every page that is looked at is written there as a PNG.
"""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.page.models import Models
from tessella.page.server import PageServer
from tessella.tests import browser as browsing
from tessella.tests.page.sent import noise, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browsing.CHROMIUM.exists(), reason="needs Debian package chromium"),
]
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PIXELS = """(async (selector) => {
  const image = document.querySelector(selector);
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const {width, height, data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  return [width, height, [...data]];
})(%r)"""
SIDEWAYS = "document.documentElement.scrollWidth > window.innerWidth"
IDLE = "document.querySelector('#tokens .views').ariaBusy === 'false'"
UNNAMED = """[...document.querySelectorAll("input, select, textarea, button, canvas, img, [role]")]
  .filter((element) => !(element.labels?.length || element.ariaLabel || element.textContent.trim()
    || element.alt || element.getAttribute("aria-labelledby") || element.closest("[hidden]")
    || element.getAttribute("role") === "status" || element.getAttribute("role") === "row"))
  .map((element) => element.outerHTML)"""


@pytest.fixture(scope="module")
def page(models: Models) -> Iterator[PageServer]:
    """The page of the small model."""
    with served(models) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[browsing.Browser]:
    """One browser for all tests."""
    with browsing.Browser() as browser:
        yield browser


def shot(page: browsing.Page, name: str) -> None:
    """Write what the page looks like, if somebody wants to look."""
    if folder := os.environ.get("TESSELLA_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")


def pixels(page: browsing.Page, selector: str) -> np.ndarray:
    """Pixels of an image on the page, (H, W, 3)."""
    width, height, values = page.evaluate(PIXELS % selector)
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def said(panel: str) -> str:
    """JavaScript of the line of state of a tab."""
    return f"document.querySelector('#{panel} [role=status]').textContent"


def nothing_wrong(visit: browsing.Visit, server: PageServer) -> None:
    """No message of the console, no refusal of the policy, nothing asked of another place."""
    assert visit.messages == []
    own = (server.address, "data:", "blob:" + server.address)
    assert [url for url in visit.requests if not url.startswith(own)] == []


@pytest.mark.parametrize(("kind", "window"), [("wide", WIDE), ("phone", PHONE)])
@pytest.mark.parametrize("dark", [False, True])
def test_every_tab_fits_its_window_and_names_its_parts(
    browser: browsing.Browser, page: PageServer, kind: str, window: dict[str, int], dark: bool
) -> None:
    with browser.page(page.address, **window, dark=dark) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        for tab in ("draw", "edit", "tokens", "compare"):
            seen.click(f"#tab-{tab}")
            assert not seen.evaluate(SIDEWAYS), tab
            assert seen.evaluate(UNNAMED) == [], tab
            shown = "[...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden)"
            assert seen.evaluate(f"{shown}.map(p => p.id)") == [tab]
            shot(seen, f"{tab}-{kind}-{'dark' if dark else 'light'}")
    nothing_wrong(seen.visit, page)


@pytest.mark.parametrize(("kind", "window"), [("wide", WIDE), ("phone", PHONE)])
def test_draw_by_clicks(
    browser: browsing.Browser, page: PageServer, kind: str, window: dict[str, int]
) -> None:
    with browser.page(page.address, **window) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        assert seen.evaluate("document.querySelector('#draw [name=prompt]').disabled")
        seen.choose("#draw [name=class_name]", "cat")
        for name, value in (("num", "3"), ("steps", "5"), ("seed", "40")):
            seen.fill(f"#draw [name={name}]", value)
        seen.evaluate("""(() => {
          window.frames_seen = new Set();
          new MutationObserver((list) => list.forEach(({target}) => frames_seen.add(target.src)))
            .observe(document.querySelector("#draw .pictures"),
              {subtree: true, attributes: true, attributeFilter: ["src"]});
        })()""")
        seen.click("#draw [type=submit]")
        seen.wait(f"/^3 pictures in [0-9.]+ s.$/.test({said('draw')})")
        assert seen.evaluate("document.querySelectorAll('#draw .pictures img').length") == 3
        assert seen.evaluate("frames_seen.size") > 3, "pictures appear before they are done"
        alt = seen.evaluate("document.querySelector('#draw .pictures img').alt")
        assert alt == "Picture 1, seed 40, by tiny, class cat"
        saved = "document.querySelector('#draw .pictures a').download"
        assert seen.evaluate(saved) == "tessella-tiny-seed-40.png"
        drawn = pixels(seen, "#draw .pictures figure:nth-child(3) img")
        assert drawn.shape == (32, 32, 3) and drawn.std() > 1
        shot(seen, f"drawn-{kind}")
        seen.click("#draw .pictures figure:nth-child(3) .links button:nth-of-type(2)")
        seen.wait("!document.querySelector('#tokens .views').hidden")
        assert np.array_equal(pixels(seen, "#tokens [data-view=original]"), drawn)
        assert not seen.evaluate(SIDEWAYS)
    nothing_wrong(seen.visit, page)


@pytest.mark.parametrize(("kind", "window"), [("wide", WIDE), ("phone", PHONE)])
def test_paint_and_edit_by_clicks(
    browser: browsing.Browser,
    page: PageServer,
    tmp_path: Path,
    kind: str,
    window: dict[str, int],
) -> None:
    picture = noise(96, 64, seed=3)
    picture.save(tmp_path / "picture.png")
    with browser.page(page.address + "#edit", **window, touch=kind == "phone") as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        seen.click("#edit [type=submit]")
        assert seen.evaluate(said("edit")) == "Choose a picture first, or take an example."
        seen.upload("#edit [type=file]", tmp_path / "picture.png")
        seen.wait("!document.querySelector('#edit .painter').hidden")
        seen.click("#edit [type=submit]")
        assert seen.evaluate(said("edit")) == "Paint over what is to be drawn anew."
        seen.drag("#edit canvas", [(0.2, 0.3), (0.3, 0.6), (0.35, 0.3)])
        seen.fill("#edit [name=steps]", "2")
        seen.click("#edit [type=submit]")
        seen.wait(f"/^Done .*: every pixel|^Done .* every pixel/.test({said('edit')})")
        assert "every pixel outside it is as it was" in seen.evaluate(said("edit"))
        found = pixels(seen, "#edit .pictures figure:nth-child(2) img")
        changed = np.argwhere((found != np.asarray(picture)).any(-1))
        assert found.shape == (64, 96, 3)
        low, high = changed.min(0), changed.max(0)  # row, column
        assert 10 <= low[0] <= 20 and 34 <= high[0] <= 48 and low[1] >= 10 and high[1] <= 42
        shot(seen, f"edited-{kind}")
        seen.click("#edit [data-do=clear]")
        seen.click("#edit [type=submit]")
        assert seen.evaluate(said("edit")) == "Paint over what is to be drawn anew."
        seen.click("#edit canvas")  # one dot is enough
        seen.click("#edit [type=submit]")
        seen.wait(f"{said('edit')}.startsWith('Done')")
        seen.click("#edit [data-do=erase]")
        seen.click("#edit canvas")
        seen.click("#edit [type=submit]")
        assert seen.evaluate(said("edit")) == "Paint over what is to be drawn anew."
        seen.click("#edit [data-do=undo]")
        seen.click("#edit [type=submit]")
        seen.wait(f"{said('edit')}.startsWith('Done')")
        assert not seen.evaluate(SIDEWAYS)
    nothing_wrong(seen.visit, page)


@pytest.mark.parametrize(("kind", "window"), [("wide", WIDE), ("phone", PHONE)])
def test_tokens_by_clicks(
    browser: browsing.Browser, page: PageServer, tmp_path: Path, kind: str, window: dict[str, int]
) -> None:
    noise(300, 200).save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("no picture")
    cell = "#tokens .grid .row:nth-child(3) button:nth-child(5)"
    with browser.page(page.address, **window) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        seen.click("#tab-tokens")
        seen.upload("#tokens [type=file]", tmp_path / "text.png")
        seen.wait(f"{said('tokens')}.startsWith('Picture: no picture in a format')")
        seen.upload("#tokens [type=file]", tmp_path / "photo.jpg")
        seen.wait("!document.querySelector('#tokens .views').hidden")
        rows = "[...document.querySelectorAll('#tokens tbody tr')].map(r => r.textContent)"
        assert len(seen.evaluate(rows)) == 6
        caption = seen.evaluate("document.querySelector('#tokens caption').textContent")
        assert caption.startswith("64 tokens hold 256 bits.") and "300 \u00d7 200" in caption
        before = pixels(seen, "#tokens [data-view=decoded]")
        seen.click(cell)
        title = "document.querySelector('#tokens [data-say=chosen]').textContent"
        assert seen.evaluate(title) == "Token in row 3, column 5"
        for number in (1, 2, 3, 4):
            seen.click(f"#tokens .bit:nth-child({number})")
        seen.wait(f"{said('tokens')} === '1 of 64 tokens changed.'")
        seen.wait(IDLE)
        after = pixels(seen, "#tokens [data-view=decoded]")
        assert not np.array_equal(before, after)
        assert seen.evaluate(f"document.querySelector('{cell}').className") == "changed"
        shot(seen, f"tokens-changed-{kind}")
        seen.click("#tokens [data-do=reset-all]")
        seen.wait(f"{said('tokens')} === ''")
        seen.wait(IDLE)
        assert np.array_equal(pixels(seen, "#tokens [data-view=decoded]"), before)
        assert not seen.evaluate(SIDEWAYS)
    nothing_wrong(seen.visit, page)


def test_compare_by_clicks(browser: browsing.Browser, page: PageServer) -> None:
    with browser.page(page.address + "#compare", **PHONE) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        seen.click("#compare [type=submit]")
        seen.wait(f"{said('compare')} === '1 model, the same seed.'")
        assert seen.evaluate("document.querySelectorAll('#compare .rows img').length") == 4
        head = seen.evaluate("document.querySelector('#compare .head').textContent")
        assert head.startswith("tinymaskbit, 0.0 million parameters, ")
        assert not seen.evaluate(SIDEWAYS)
    nothing_wrong(seen.visit, page)


def test_everything_by_the_keyboard(browser: browsing.Browser, page: PageServer) -> None:
    """Tab reaches every control in order, with a visible ring; arrows do what is theirs."""
    focus = """(({id, name, textContent}) => id || name || textContent.trim())(
      document.activeElement)"""
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    with browser.page(page.address, **WIDE) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        order = []
        for _ in range(10):
            seen.press("Tab")
            order.append(seen.evaluate(focus))
            assert seen.evaluate(ring) == "solid", order[-1]
        assert order == [
            *("Skip to the page", "tab-draw", "model", "class_name", "num", "steps", "guidance"),
            *("seed", "⚄", "Draw"),
        ]
        seen.press("Enter")
        seen.wait(f"/^8 pictures in/.test({said('draw')})")
        seen.evaluate("document.querySelector('#tab-draw').focus()")
        seen.press("ArrowRight")
        assert seen.evaluate(focus) == "tab-edit"
        seen.click("#edit [data-do=example]")
        seen.wait("!document.querySelector('#edit .painter').hidden")
        seen.evaluate("document.querySelector('#edit canvas').focus()")
        seen.press("ArrowLeft", 3)
        seen.press(" ")
        seen.press("ArrowUp")
        seen.press(" ")
        seen.fill("#edit [name=steps]", "1")
        seen.press("Enter")
        seen.wait(f"{said('edit')}.startsWith('Done')")
        seen.click("#tab-tokens")
        seen.click("#tokens [data-do=example]")
        seen.wait("!document.querySelector('#tokens .views').hidden")
        seen.evaluate("document.querySelector('#tokens .grid button').focus()")
        seen.press("ArrowRight")
        seen.press("ArrowDown", 2)
        seen.press("Enter")
        title = "document.querySelector('#tokens [data-say=chosen]').textContent"
        assert seen.evaluate(title) == "Token in row 3, column 2"
        seen.evaluate("document.querySelector('#tokens .bit').focus()")
        seen.press(" ")
        seen.wait(f"{said('tokens')} === '1 of 64 tokens changed.'")
        assert seen.evaluate("document.activeElement.className") == "bit"
    nothing_wrong(seen.visit, page)


def test_a_prompt_is_typed_where_the_model_reads_words(
    browser: browsing.Browser, worded: Models
) -> None:
    with served(worded) as server, browser.page(server.address, **PHONE) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        prompt = "document.querySelector('#draw [name=prompt]')"
        assert seen.evaluate(f"[{prompt}.disabled, {prompt}.value]") == [False, "red apple"]
        assert seen.evaluate("document.querySelector('#draw [name=class_name]').disabled")
        seen.fill("#draw [name=prompt]", "a very sad cat")
        seen.fill("#draw [name=num]", "1")
        seen.click("#draw [type=submit]")
        seen.wait(f"/^1 picture in/.test({said('draw')})")
        alt = seen.evaluate("document.querySelector('#draw .pictures img').alt")
        assert alt == "Picture 1, seed 0, by worded, a very sad cat"
        seen.choose("#draw [name=model]", "tiny")
        assert seen.evaluate(f"{prompt}.disabled")
        seen.click("#tab-compare")
        seen.click("#compare [type=submit]")
        seen.wait(f"{said('compare')} === '1 model, the same seed.'")
        told = seen.evaluate("document.querySelector('#compare .rows').textContent")
        assert "tinyPrompt: this model reads no text; leave it empty." in told
        assert not seen.evaluate(SIDEWAYS)
    nothing_wrong(seen.visit, server)


def test_stop_ends_the_job_and_the_page_says_when_nobody_answers(
    browser: browsing.Browser, models: Models
) -> None:
    with served(models) as server, browser.page(server.address, **PHONE) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        server.turns._line.append(object())  # a job that never ends
        seen.click("#draw [type=submit]")
        seen.wait(f"{said('draw')} === 'Waiting: 1 before this one.'")
        assert seen.evaluate("document.querySelector('#draw [type=submit]').disabled")
        seen.click("#draw [data-do=stop]")
        seen.wait(f"{said('draw')} === 'Stopped.'")
        seen.wait("!document.querySelector('#draw [type=submit]').disabled")
        server.turns._line.clear()
        server.shutdown()
        server.server_close()
        seen.click("#draw [type=submit]")
        seen.wait(f"{said('draw')}.startsWith('Tessella does not answer')")


def test_the_picture_on_the_page_is_the_file_that_is_saved(
    browser: browsing.Browser, page: PageServer
) -> None:
    with browser.page(page.address, **WIDE) as seen:
        seen.wait("document.body.dataset.ready === 'yes'")
        seen.fill("#draw [name=num]", "1")
        seen.click("#draw [type=submit]")
        seen.wait(f"/^1 picture in/.test({said('draw')})")
        address = seen.evaluate("document.querySelector('#draw .pictures a').href")
        file = io.BytesIO(base64.b64decode(address.partition(",")[2]))
        with Image.open(file) as saved:
            assert np.array_equal(np.asarray(saved), pixels(seen, "#draw .pictures img"))
