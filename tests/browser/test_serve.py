"""The page of `mmcl serve` in a real browser: quiet, nothing from outside, accessible in every view, usable by key."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.search import Index
from mmcl.serve.gallery import Gallery
from mmcl.testing.patterns import CLASSES, NAMES, PatternModel, pattern
from tests.browser.conftest import Browser
from tests.browser.test_pages import HARD
from tests.serve.server import Served, served

COUNT = 90
RING, CROSS = NAMES[1:3]
assert (RING, CROSS) == ("pattern 1", "pattern 2")
MORE = [(390, True), (320, False), (1280, True)]
LABELS = "labels=pattern+1,pattern+2"
VIEWS = {
    "welcome": "/",
    "answer": "/?q=pattern+1&negative=pattern+2",
    "filtered": "/?q=pattern+1&folder=odd&where=width+>+1&sort=-taken",
    "nothing": "/?where=width+>+9999",
    "mistake": "/?where=wdith+>+1",
    "labels": f"/?view=labels&{LABELS}",
    "duplicates": "/?view=duplicates",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """90 images of the six patterns, in two folders, with captions of any script and length."""
    folder = tmp_path_factory.mktemp("page") / "photos"
    for number in range(COUNT):
        file = folder / ("odd" if number % 2 else "even") / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"20{10 + number // 30}:01:{1 + number % 28:02} 12:00:00"
        Image.fromarray(pattern(number % CLASSES)).resize((300 if number % 5 == 0 else 64, 64)).save(file, exif=exif)
        file.with_suffix(".txt").write_text(f"{NAMES[number % CLASSES]}\n{HARD[number % len(HARD)]}\n")
    index = Index.build(folder, PatternModel())
    with served(Gallery(index.store, index.model, f"photos {HARD[0]}")) as running:
        yield running


def go(browser: Browser, page: Served, path: str = "/", **size: Any) -> None:
    browser.open(f"http://127.0.0.1:{page.port}{path}", **size)
    settled(browser)


def settled(browser: Browser) -> None:
    browser.wait(
        "document.getElementById('status').textContent && !document.querySelector('.is-old') "
        "&& !document.getElementById('status').textContent.endsWith('…') || !document.getElementById('notice').hidden"
    )


def captions(browser: Browser) -> list[str]:
    found: list[str] = browser.run("return [...document.querySelectorAll('#grid .words')].map((one) => one.textContent)")
    return found


def press(browser: Browser, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser.driver).send_keys(*keys).perform()


def focused(browser: Browser) -> int:
    place: int = browser.run("return [...document.querySelectorAll('.tile')].indexOf(document.activeElement.closest('.tile'))")
    return place


def is_fresh(browser: Browser) -> bool:
    shown: bool = browser.run("return !document.getElementById('welcome').classList.contains('quiet')")
    return shown


def is_faultless(browser: Browser, *, expected: str = "") -> None:
    assert browser.violations() == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
    assert [message for message in browser.messages() if not expected or expected not in message] == []
    assert {url.split("/")[2].partition(":")[0] for url in browser.requests() if url.startswith("http")} <= {"127.0.0.1"}
    assert browser.run("return window.attacked === undefined")


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (320, True), *(pytest.param(*one, marks=pytest.mark.long) for one in MORE)]
)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_quiet_accessible_and_fits(view: str, width: int, dark: bool, browser: Browser, page: Served) -> None:
    go(browser, page, VIEWS[view], width=width, dark=dark)
    is_faultless(browser, expected="422" if view == "mistake" else "")


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (320, True), *(pytest.param(*one, marks=pytest.mark.long) for one in MORE)]
)
def test_the_dialogs_and_the_selection_too(width: int, dark: bool, browser: Browser, page: Served) -> None:
    go(browser, page, width=width, dark=dark)
    browser.find(".open").click()
    browser.wait("document.getElementById('detail').open && document.querySelector('#detail-facts dd')")
    is_faultless(browser)
    browser.find("#detail-select").click()
    browser.find("#detail .close").click()
    browser.wait("!document.getElementById('detail').open && !document.getElementById('tray').hidden")
    is_faultless(browser)
    browser.find("#keys").click()
    is_faultless(browser)


def test_a_text_finds_its_images_and_is_in_the_address(browser: Browser, page: Served) -> None:
    go(browser, page)
    press(browser, "/")
    press(browser, RING, "\ue007")
    browser.wait("location.search === '?q=pattern+1'")
    settled(browser)
    assert set(captions(browser)[: COUNT // CLASSES]) == {RING}
    assert RING in browser.driver.title
    browser.find("#negative").send_keys(RING, "\ue007")
    browser.wait("location.search.includes('negative')")
    settled(browser)
    browser.driver.back()
    browser.wait("location.search === '?q=pattern+1'")
    settled(browser)
    assert captions(browser)[0] == RING
    browser.driver.back()
    browser.wait("location.search === ''")
    settled(browser)
    assert is_fresh(browser)


def test_a_suggestion_is_a_search(browser: Browser, page: Served) -> None:
    go(browser, page)
    button = browser.find("#suggestions button")
    text = button.text
    button.click()
    browser.wait("location.search.startsWith('?q=')")
    settled(browser)
    assert captions(browser)[0] == text


def drop(browser: Browser, kind: str) -> None:
    """Drops a picture as a file manager would; or pastes it."""
    file = io.BytesIO()
    Image.fromarray(pattern(1)).save(file, "PNG")
    browser.run(
        "const [kind, bytes] = arguments, data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'picture.png', { type: 'image/png' }));"
        "const pasted = new ClipboardEvent('paste', { clipboardData: data, cancelable: true });"
        "if (kind === 'paste') { dispatchEvent(pasted); return; }"
        "for (const name of ['dragenter', 'dragover', 'drop'])"
        "  document.body.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));",
        kind,
        list(file.getvalue()),
    )


@pytest.mark.parametrize("kind", ["drop", "paste", "choose"])
def test_a_picture_finds_its_like(kind: str, browser: Browser, page: Served, tmp_path: Path) -> None:
    go(browser, page)
    if kind == "choose":
        Image.fromarray(pattern(1)).save(tmp_path / "picture.png")
        browser.find("#file").send_keys(str(tmp_path / "picture.png"))
    else:
        drop(browser, kind)
    browser.wait("document.querySelector('.part img')")
    settled(browser)
    assert set(captions(browser)[: COUNT // CLASSES]) == {RING}
    is_faultless(browser)
    browser.find(".part button").click()
    browser.wait("!document.querySelector('.part')")
    settled(browser)
    assert is_fresh(browser)


def test_what_is_no_image_is_said(browser: Browser, page: Served, tmp_path: Path) -> None:
    go(browser, page)
    (tmp_path / "broken.png").write_bytes(b"no image")
    browser.find("#file").send_keys(str(tmp_path / "broken.png"))
    browser.wait("!document.getElementById('notice').hidden")
    assert "picture 1 is not an image" in browser.find("#notice").text


def test_keys_go_from_image_to_image_as_they_are_on_the_screen(browser: Browser, page: Served) -> None:
    up, down, left, right, end, home = "\ue013", "\ue015", "\ue012", "\ue014", "\ue010", "\ue011"
    for width in (1280, 390):
        go(browser, page, width=width)
        columns = browser.run("return getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length")
        visited = []
        for key in (down, right, down, up, left, end, home):
            press(browser, key)
            visited.append(focused(browser))
        assert visited == [0, 1, 1 + columns, 1, 0, 59, 0]
        assert browser.run("return document.querySelectorAll('.open[tabindex=\"0\"]').length") == 1


def test_keys_find_more_like_an_image_show_it_and_select_it(browser: Browser, page: Served) -> None:
    go(browser, page, "/?q=pattern+1")
    press(browser, "\ue015", " ")
    assert browser.find("#selected").text == "1 image selected"
    assert browser.find(".tile.is-selected input").is_selected()
    press(browser, "i")
    browser.wait("document.getElementById('detail').open && location.search.includes('item=')")
    press(browser, "\ue014")
    browser.wait("document.getElementById('detail-place').textContent.startsWith('2 of')")
    press(browser, "\ue00c")
    browser.wait("!document.getElementById('detail').open")
    assert focused(browser) == 1
    press(browser, "\ue00c")
    assert not browser.find("#tray").is_displayed()
    press(browser, "\ue007")
    browser.wait("location.search.includes('like=')")
    settled(browser)
    assert set(captions(browser)[: COUNT // CLASSES]) == {RING}


def test_an_address_opens_an_image(browser: Browser, page: Served) -> None:
    row = page.get("/api/search?q=pattern+2&k=1").json["rows"][0]
    go(browser, page, f"/?q=pattern+2&item={row['id']}")
    browser.wait("document.getElementById('detail').open && document.querySelector('#detail-facts dd')")
    assert browser.find("#detail-title").text == CROSS
    assert row["name"] in browser.find("#detail-facts").text
    assert browser.run("return document.getElementById('detail-image').complete")
    browser.find("#detail-like").click()
    browser.wait("location.search.includes('like=')")


def test_more_images_come_when_one_goes_on(browser: Browser, page: Served) -> None:
    go(browser, page)
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"document.querySelectorAll('.tile').length === {COUNT}")
    assert len(set(browser.run("return [...document.querySelectorAll('.tile')].map((one) => one.row.id)"))) == COUNT


def test_filters(browser: Browser, page: Served) -> None:
    go(browser, page)
    browser.wait("!document.getElementById('folder-field').hidden && !document.getElementById('year-field').hidden")
    browser.find("#folder option[value=odd]").click()
    browser.wait("location.search.includes('folder=odd')")
    settled(browser)
    assert browser.find("#status").text == f"{COUNT // 2} images of {COUNT}"
    browser.find("#year option[value='2011']").click()
    browser.wait("location.search.includes('year=2011')")
    settled(browser)
    assert browser.find("#status").text == f"15 images of {COUNT}"


def test_sliders_order_the_images_without_asking(browser: Browser, page: Served) -> None:
    go(browser, page, f"/?view=labels&{LABELS}")
    assert captions(browser)[0] == RING
    browser.requests()
    browser.run(
        "const [first, second] = document.querySelectorAll('#sliders input');"
        "first.value = -1; second.value = 1; second.dispatchEvent(new Event('input'));"
    )
    assert captions(browser)[0] == CROSS
    assert not [url for url in browser.requests() if "/api/zeroshot" in url]


def test_duplicates_are_shown_in_groups_and_selected(browser: Browser, page: Served) -> None:
    go(browser, page, "/?view=duplicates&threshold=0.99")
    words = "[...group.querySelectorAll('.words')].map((one) => one.textContent)"
    groups = browser.run(f"return [...document.querySelectorAll('.group')].map((group) => {words})")
    assert groups
    assert all(len(set(group)) == 1 for group in groups)
    assert browser.run(
        "return [...document.querySelectorAll('.group')].every((one) => one.querySelectorAll('.tag').length === 1)"
    )
    browser.find(".group button:not(.open)").click()
    assert browser.find("#selected").text == f"{len(groups[0]) - 1} images selected"
    assert not browser.run("return document.querySelector('.group .tile:has(.tag) input').checked")


def test_the_selection_is_saved(browser: Browser, page: Served, tmp_path: Path) -> None:
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    go(browser, page, "/?q=pattern+1")
    press(browser, "\ue015", " ", "\ue014", " ")
    browser.find("#json").click()
    file = tmp_path / "images.json"
    for _ in range(200):
        if file.exists():
            break
        browser.run("return 0")
        browser.driver.implicitly_wait(0.05)
    assert [row["caption"] for row in json.loads(file.read_text())] == [RING, RING]


def test_the_token_of_the_link_opens_the_page(browser: Browser, tmp_path: Path) -> None:
    Image.fromarray(pattern(0)).save(tmp_path / "a.png")
    index = Index.build(tmp_path, PatternModel())
    with served(Gallery(index.store, index.model, "photos"), token="a-token-of-this-test") as locked:
        browser.open(f"http://127.0.0.1:{locked.port}/")
        browser.wait("!document.getElementById('notice').hidden")
        assert "open the link that mmcl serve printed" in browser.find("#notice").text
        browser.open(locked.url)
        settled(browser)
        assert browser.run("return document.querySelectorAll('.tile').length") == 1
        assert browser.run("return location.hash + document.cookie") == "", "neither the address nor a script has it"
        browser.open(f"http://127.0.0.1:{locked.port}/?q=pattern+1")
        settled(browser)
        assert browser.run("return document.querySelectorAll('.tile').length") == 1
