"""The page in a real browser: pictures go in, outlines and their order come out."""

import base64
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")
pytest.importorskip("python_multipart", reason="needs the extra `demo`")
expect = sync_api.expect

from scene import HEIGHT, WIDTH, Finder, draw, encode, running  # noqa: E402

from tools.demo_page.limits import Limits  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE = {"width": 360, "height": 740}
SECONDS = 60


@pytest.fixture(scope="module")
def browser():
    if not BROWSER:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not start as root.
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def finder():
    return Finder()


@pytest.fixture(scope="module")
def url(browser, finder):
    with running(finder, Limits(upload_bytes=3_000_000)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "pebbles.jpg"
    path.write_bytes(encode(draw()))
    return path


@pytest.fixture
def open_page(browser):
    """Opens the page; fails if anything was said on the console or fetched from elsewhere."""
    contexts, said, fetched = [], [], set()

    def open_page(url, **options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options
        )
        contexts.append(context)
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.add(request.url.partition(":")[0]))
        page.on("request", lambda request: fetched.add(re.split("[/:]+", request.url)[1]))
        # Before anything is loaded: a listener added later can come after the key it waits for.
        page.on("filechooser", lambda chooser: None)
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        return page

    expect.set_options(timeout=1000 * SECONDS)
    yield open_page
    for context in contexts:
        context.close()
    expected = "Failed to load resource: "
    assert not [line for line in said if not line.startswith(expected)]
    assert fetched - {"blob", "http"} == {"127.0.0.1"}


@pytest.fixture
def page(open_page, url):
    return open_page(url)


def choose(page, path):
    page.set_input_files("#file", path)
    page.wait_for_selector("body[data-state=shown]")


def rows(page):
    """What the list shows, top to bottom."""
    return [
        re.sub(r"\s+", " ", row.inner_text()) for row in page.query_selector_all("#list li:visible")
    ]


def slide(page, name, value):
    page.locator(f"input[name={name}]").fill(str(value))


def screenshot(page, tmp_path, name):
    """Takes a picture of the page, and checks that it is not all of one colour."""
    path = tmp_path / f"{name}.png"
    page.screenshot(path=path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 10
    return pixels


def test_outlines_and_a_list_appear(page, picture, tmp_path):
    assert "Choose a picture" in page.inner_text(".drop")
    assert page.locator(".panel").is_hidden()
    before = screenshot(page, tmp_path, "empty")
    choose(page, picture)
    assert rows(page)[:2] == ["1 pebble 0.98 0.92 0.90 1 → 1", "2 pebble 0.86 0.90 0.77 4 → 2"]
    assert page.inner_text("#status") == "6 of 6 detections shown; rescoring moves 4."
    assert page.locator("#outlines g:visible").count() == 6
    assert "640 × 480 pixels" in page.inner_text("#caption")
    after = screenshot(page, tmp_path, "shown")
    assert np.abs(after.astype(int) - before).mean() > 10


def test_outlines_are_the_masks(page, picture):
    """Of the path that is drawn and the RLE that is downloaded, all but the edge is the same."""
    choose(page, picture)
    entries, name = save(page)
    assert name == "pebbles.json"
    paths = page.eval_on_selector_all(
        "#list li", "rows => rows.map(row => row.getAttribute('aria-label'))"
    )
    assert len(paths) == len(entries) == 6
    for label, entry in zip(paths, entries, strict=True):
        d = page.get_attribute(f'#outlines g[aria-label="{label}"] .line', "d")
        drawn = fill(d)
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        assert (drawn & mask).sum() > 0.97 * (drawn | mask).sum()
        assert entry.keys() == {
            "image_id", "file_name", "category_id", "bbox", "score", "box_score", "mask_iou",
            "mask_score", "segmentation",
        }  # fmt: skip
        assert entry["file_name"] == "pebbles.jpg" and entry["score"] == entry["mask_score"]


def fill(d):
    """The pixels inside a path of straight lines, bool [HEIGHT, WIDTH]."""
    canvas = Image.new("1", (WIDTH, HEIGHT))
    for ring in d.strip("MZ").split("ZM"):
        points = [tuple(map(float, point.split())) for point in ring.split("L")]
        ImageDraw.Draw(canvas).polygon(points, fill=1)
    return np.asarray(canvas)


def test_sorting_shows_what_rescoring_changes(page, picture):
    choose(page, picture)
    page.locator("input[value=box_score]").check(force=True)
    assert [row.rpartition(" 0.")[2] for row in rows(page)] == [
        "90 1 → 1", "52 2 → 4", "72 3 → 3", "77 4 → 2", "22 5 → 6", "33 6 → 5",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows(page)] == list("123456")
    page.locator("input[value=mask_score]").check(force=True)
    assert rows(page)[1].endswith("4 → 2")


def test_thresholds_hide_rows_and_outlines(page, picture):
    choose(page, picture)
    slide(page, "mask_iou", 0.6)
    assert len(rows(page)) == page.locator("#outlines g:visible").count() == 4
    # Ranks are among what is shown.
    assert rows(page)[1].endswith("3 → 2")
    assert page.inner_text("#status") == "4 of 6 detections shown; rescoring moves 2."
    slide(page, "box_score", 0.5)
    slide(page, "mask_score", 0.75)
    assert [row.split()[4] for row in rows(page)] == ["0.90", "0.77"]
    assert len(save(page)[0]) == 2
    slide(page, "box_score", 1)
    assert page.inner_text("#status") == "All 6 detections are below these thresholds."
    assert page.locator("#download").is_disabled() and not rows(page)


def save(page):
    """The entries of the file that the page offers, and its name."""
    with page.expect_download() as download:
        page.click("#download")
    return json.loads(Path(download.value.path()).read_text()), download.value.suggested_filename


def active(page):
    """The places in the list, and the number of outlines, that are highlighted."""
    chosen = page.query_selector_all("#list li.active:visible .place")
    return [each.inner_text() for each in chosen], page.locator("#outlines g.active").count()


def test_rows_and_outlines_point_at_each_other(page, picture):
    choose(page, picture)
    page.hover("#list li:has-text('0.62')")
    assert active(page) == (["6"], 1) and page.inner_text("#tag") == "shell 0.22"
    label = page.get_attribute("#outlines g.active", "aria-label")
    assert label == (
        "shell, box score 0.62, mask IoU 0.35, mask score 0.22, "
        "rank 5 by box score, 6 by mask score"
    )
    box = page.locator("#picture").bounding_box()
    scale = box["width"] / WIDTH
    page.mouse.move(box["x"] + 420 * scale, box["y"] + 300 * scale)
    assert active(page) == (["4"], 1) and page.inner_text("#tag") == "pebble 0.52"
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert active(page) == ([], 0) and page.locator("#tag").is_hidden()


def test_everything_works_with_the_keyboard(page, picture):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(picture)
    page.wait_for_selector("body[data-state=shown]")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "(e => e.id || e.name || e.getAttribute('role'))(document.activeElement)"
        ))  # fmt: skip
        if page.evaluate("document.activeElement.matches('#list li')"):
            break
    wanted = ["choose", "download", "sort", "box_score", "mask_score", "mask_iou", "option"]
    assert [name for name in reached if name in wanted][-7:] == wanted
    assert active(page) == (["1"], 1)
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(ring) == "solid"
    for key, place in (
        ("ArrowDown", "2"),
        ("End", "6"),
        ("ArrowDown", "6"),
        ("ArrowUp", "5"),
        ("Home", "1"),
    ):
        page.keyboard.press(key)
        assert active(page) == ([place], 1)
    page.keyboard.press("Escape")
    assert active(page) == ([], 0)
    page.focus("#outlines g[tabindex='0']")
    page.keyboard.press("ArrowRight")
    assert active(page) == (["2"], 1)
    assert page.evaluate("document.activeElement.closest('#outlines') !== null")


def test_slider_keys_filter(page, picture):
    choose(page, picture)
    page.focus("input[name=mask_iou]")
    page.keyboard.press("End")
    assert page.inner_text("#status") == "All 6 detections are below these thresholds."
    page.keyboard.press("Home")
    assert len(rows(page)) == 6


def give(page, event, picture):
    """Gives a file to the page as a paste or a drop does."""
    page.evaluate(
        """([kind, encoded]) => {
          const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
          const event = kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
            : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
          document.body.dispatchEvent(event);
        }""",
        [event, base64.b64encode(picture.read_bytes()).decode()],
    )


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(page, picture, event):
    give(page, event, picture)
    page.wait_for_selector("body[data-state=shown]")
    assert len(rows(page)) == 6 and "given.jpg" in page.inner_text("#caption")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_at_its_width(open_page, url, picture, tmp_path, scheme):
    page = open_page(url, viewport=PHONE, color_scheme=scheme, has_touch=True)
    choose(page, picture)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert rows(page)[1].startswith("2 pebble")
    for part in page.query_selector_all("#picture, button, #controls *, #list li *"):
        box = part.bounding_box()
        assert not box or (box["x"] >= 0 and box["x"] + box["width"] <= 360)
    page.tap("#list li:nth-child(4)")
    pixels = screenshot(page, tmp_path, scheme)
    # The picture stays in sight while the list scrolls.
    assert 0 <= page.locator("#picture").bounding_box()["y"] < 100
    assert (pixels.mean() > 128) == (scheme == "light")


def test_the_browser_turns_a_rotated_picture_as_the_model_sees_it(open_page, url, tmp_path):
    exif = Image.Exif()
    for orientation, turns, name in ((3, 2, "a.jpg"), (6, 1, "b.jpg"), (8, 3, "c.png")):
        exif[0x0112] = orientation
        path = tmp_path / name
        kind = "PNG" if name.endswith("png") else "JPEG"
        path.write_bytes(encode(np.rot90(draw(), turns), kind, exif=exif))
        page = open_page(url)
        choose(page, path)
        size = page.evaluate("[picture.naturalWidth, picture.naturalHeight]")
        assert size == [WIDTH, HEIGHT] and "640 × 480" in page.inner_text("#caption")
        page.evaluate("outlines.style.display = 'none'")
        shown = np.asarray(Image.open(_shot(page.locator("#picture"), tmp_path)))
        expected = np.asarray(Image.fromarray(draw()).resize(shown.shape[1::-1]))
        middle = np.s_[40:-40, 40:-40]
        assert np.abs(shown[middle][..., :3].astype(int) - expected[middle]).mean() < 8


def _shot(locator, folder):
    path = folder / "shot.png"
    locator.screenshot(path=path)
    return path


def test_what_is_no_picture_is_said_and_the_page_goes_on(page, picture, tmp_path):
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    page.set_input_files("#file", tmp_path / "letter.jpg")
    page.wait_for_selector("body[data-state=refused]")
    assert "neither JPEG nor PNG" in page.inner_text("[role=alert]")
    assert page.locator("#retry").is_hidden()
    (tmp_path / "large.jpg").write_bytes(bytes(4_000_000))
    page.set_input_files("#file", tmp_path / "large.jpg")
    expect(page.locator("[role=alert]")).to_contain_text("large.jpg has 3.8 MB, more than the 2 MB")
    screenshot(page, tmp_path, "refused")
    choose(page, picture)
    assert len(rows(page)) == 6 and not page.inner_text("[role=alert]")


def test_a_second_picture_replaces_the_first_while_it_waits(open_page, picture, tmp_path):
    (tmp_path / "small.png").write_bytes(encode(draw()[:100, :120], "PNG"))
    slow = Finder(seconds=1.0)
    with running(slow, Limits()) as port:
        page = open_page(f"http://127.0.0.1:{port}/")
        page.set_input_files("#file", picture)
        page.wait_for_selector("body[data-state=busy]")
        assert page.inner_text("#status") == "Finding objects …"
        choose(page, tmp_path / "small.png")
        assert "120 × 100 pixels" in page.inner_text("#caption")
        time.sleep(1.5)
        assert "120 × 100 pixels" in page.inner_text("#caption") and len(rows(page)) == 6
        # The server is gone.
    page.set_input_files("#file", picture)
    page.wait_for_selector("body[data-state=refused]")
    assert "The server does not answer" in page.inner_text("[role=alert]")
    assert page.locator("#retry").is_visible()


@pytest.mark.parametrize("system", ["mask_rcnn", "faster_rcnn"])
def test_the_page_hides_what_a_model_lacks(open_page, picture, tmp_path, system):
    with running(Finder(system), Limits()) as port:
        page = open_page(f"http://127.0.0.1:{port}/")
        choose(page, picture)
        assert rows(page)[:2] == ["1 pebble 0.98", "2 pebble 0.95"]
        for hidden in ("#sorts", "[name=mask_iou]", "[name=mask_score]", "#scale", ".head .rank"):
            assert page.locator(hidden).is_hidden()
        assert page.inner_text("#status") == "6 of 6 detections shown."
        path = page.get_attribute("#outlines .line >> nth=0", "d")
        assert ("H" in path) == (system == "faster_rcnn")
        screenshot(page, tmp_path, system)
        entry = save(page)[0][0]
        assert ("segmentation" in entry) == (system == "mask_rcnn") and "mask_iou" not in entry
