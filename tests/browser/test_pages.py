"""The pages in a real browser: quiet, nothing from outside, accessible at any width, and usable by hand and by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.evaluate import CachedModel, Projection, Report, Task, compare, project, run
from mmcl.evaluate.reporting.examples import Hit, Query
from mmcl.evaluate.reporting.thumbnails import data_uri
from mmcl.testing.patterns import PatternModel, PatternSource, pattern
from tests.browser.conftest import Browser
from tests.evaluate.toys import unit

HARD = [
    '<img src=x onerror="window.attacked = 1"><script>window.attacked = 1</script>',
    "قطة مبتسمة تجلس على سجادة " * 9,
    "笑う猫が敷物の上に座っている" * 12,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 6,
    "a cat",
    "",
]
SHAPES = [(40, 30), (2000, 20), (20, 2000), (1, 1), (64, 64)]
SETTINGS = [(1280, False), (320, True), *(pytest.param(*one, marks=pytest.mark.long) for one in [(390, True), (320, False)])]
POINTS = 40

Save = Callable[[str, str], Path]


class HardSource(PatternSource):
    """Captions of any script and length."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return replace(sample, captions=(f"{sample.captions[0]} {HARD[index % len(HARD)]}".strip(),))


def image(number: int) -> Image.Image:
    width, height = SHAPES[number % len(SHAPES)]
    return Image.fromarray(pattern(number % 6)).resize((width, height))


def drawn(*, labels: bool) -> Projection:
    names = [f"class {number} {text}" for number, text in enumerate(HARD)]
    return project(
        unit((POINTS, 5), 0),
        np.arange(POINTS) % len(HARD) if labels else None,
        class_names=names if labels else None,
        captions=[f"{number} {HARD[number % len(HARD)]}" for number in range(POINTS)],
        images=[image(number) for number in range(POINTS)],
        method="pca",
        title=HARD[0] + HARD[3],
    )


def evaluated(rows: int) -> Report:
    """A report with everything that one can have."""
    task = Task(HARD[3], HardSource(rows, seed=0), PatternSource(60, seed=1))
    jobs: list[tuple[str, Mapping[str, Any]]] = [("retrieval", {}), ("knn", {"ks": [1]})]
    models = [CachedModel(PatternModel(), name) for name in ("trained", "untrained")]
    found = run(jobs, models, [task])
    return found + Report(
        failures=(HARD[0],), notes=(HARD[2],), title=HARD[3] + HARD[0], about={"method": HARD[1], "model": HARD[3]}
    )


def changes() -> list[tuple[Query, Query]]:
    def query(group: str, number: int) -> Query:
        hits = [
            Hit(rank=rank, score=0.5, is_right=rank == number, text=HARD[rank], image=data_uri(image(rank)))
            for rank in (1, 2, 3)
        ]
        answer = Hit(rank=1_234_567, score=-0.078, is_right=True, text=HARD[0], image=data_uri(image(0)))
        return Query(group=group, text=HARD[number], image=None, hits=tuple(hits), answer=answer)

    return [(query(group, number), query(group, number + 1)) for group in ("better", "worse") for number in (0, 1, 2, 3)]


@pytest.fixture(scope="session")
def pages(saved: Save) -> dict[str, Path]:
    report = evaluated(36)
    comparison = compare(report, report, models=("untrained", "trained"), names=(HARD[0], HARD[3]))
    return {
        "report": saved("report", report.to_html()),
        "report of one sample": saved("one", evaluated(1).to_html()),
        "comparison": saved("comparison", replace(comparison, changes={HARD[0]: changes()}).to_html()),
        "map of images": saved("images", drawn(labels=False).to_html()),
        "map of classes": saved("classes", drawn(labels=True).to_html()),
    }


PAGES = ["report", "report of one sample", "comparison", "map of images", "map of classes"]


@pytest.mark.parametrize(("width", "dark"), SETTINGS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_quiet_accessible_and_fits(
    name: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.run("if (typeof goTo === 'function') goTo(1)")
    assert browser.violations() == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
    assert browser.messages() == []
    outside = [url for url in browser.requests() if not url.startswith(("data:", "file:", "about:"))]
    assert outside == []
    assert browser.run("return window.attacked === undefined")


def test_a_faulty_page_is_detected(browser: Browser, saved: Save) -> None:
    page = '<html><body><img src="http://localhost:9/x.png"><p style="color: #ccc; background: #fff">pale</p></body></html>'
    browser.open(saved("faulty", page))
    found = " ".join(browser.violations())
    assert all(rule in found for rule in ("image-alt", "color-contrast", "document-title", "html-has-lang"))
    assert browser.messages()
    assert "http://localhost:9/x.png" in browser.requests()


@pytest.mark.parametrize("width", [1280, 320])
def test_images_stay_in_their_frames(width: int, browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("report", "comparison"):
        browser.open(pages[name], width=width)
        sizes = browser.run(
            "return [...document.querySelectorAll('.frame')].map((frame) => [frame, frame.firstChild].map((one) => {"
            "const box = one.getBoundingClientRect(); return [box.left, box.top, -box.right, -box.bottom]; }))"
        )
        assert len(sizes) > 10
        assert all(outer <= inner for frame, shown in sizes for outer, inner in zip(frame, shown, strict=True))


def test_tables_are_folded_and_have_no_empty_row(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report of one sample"])
    assert browser.run("return document.querySelectorAll('details[open]').length") == 0
    browser.find("summary").click()
    assert browser.find("details table").is_displayed()
    rows = browser.run(
        "return [...document.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert rows
    assert not [row for row in rows if set(row[1:-1]) <= {"", "-"}]


def test_right_and_wrong_are_distinguished_without_colors(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"])
    found = browser.run(
        "return [...document.querySelectorAll('.hits li')].map((hit) => [hit.className, "
        "hit.querySelector('.mark').getAttribute('aria-label'), getComputedStyle(hit.querySelector('.frame')).borderTopStyle])"
    )
    kinds = {("right", "right", "solid"), ("wrong", "wrong", "dashed"), ("right answer", "right", "solid")}
    assert {tuple(one) for one in found} == kinds


def pointer(browser: Browser) -> Any:
    from selenium.webdriver import ActionChains

    return ActionChains(browser.driver, duration=20)


def away_from_center(browser: Browser, number: int) -> tuple[int, int]:
    """Where a point is, from the center of the map, in pixels."""
    x, y = browser.run(f"return [screenX({number}) - canvas.clientWidth / 2, screenY({number}) - canvas.clientHeight / 2]")
    return round(x), round(y)


def over(browser: Browser, number: int) -> Any:
    return pointer(browser).move_to_element_with_offset(browser.find("canvas"), *away_from_center(browser, number))


def shown_caption(number: int) -> str:
    return " ".join(f"{number} {HARD[number % len(HARD)]}".split())


def test_a_map_without_classes_begins_with_images(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["map of images"])
    assert browser.run("return showImages.checked && asImages()")
    browser.open(pages["map of classes"])
    assert not browser.run("return showImages.checked")
    browser.find("#images input").click()
    assert browser.run("return asImages()")


def test_hovering_shows_image_and_caption(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["map of classes"])
    assert not browser.find("#card").is_displayed()
    over(browser, 4).perform()
    browser.wait("!card.hidden")
    number = browser.run("return selected")
    assert browser.find("#card .clamp").text.startswith(shown_caption(number)[:20].strip())
    assert browser.find("#card .class").text.startswith(f"class {number % len(HARD)}")
    assert browser.find("#card .thumb").size == {"width": 96, "height": 96}
    pointer(browser).move_to_element(browser.find("h1")).perform()
    browser.wait("card.hidden")


def test_a_click_shows_the_nearest_in_the_embedding(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["map of images"])
    over(browser, 7).click().perform()
    browser.wait("pinned")
    number = browser.run("return selected")
    rows = unit((POINTS, 5), 0)
    cosine = rows @ rows[number]
    cosine[number] = -2
    expected = np.argsort(-cosine)[:8].tolist()
    shown = browser.run(
        "return [...list.querySelectorAll('button')].map((one) => [one.children[1].textContent, one.children[2].textContent])"
    )
    assert [text.split()[0] for text, _ in shown] == [str(one) for one in expected]
    assert [float(score) for _, score in shown] == pytest.approx(cosine[expected].tolist(), abs=0.006)
    browser.find("#nearest button").click()
    assert browser.run("return selected") == expected[0]


def test_search_counts_marks_and_goes_to_what_is_found(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver import Keys

    browser.open(pages["map of images"])
    browser.find("body").send_keys("/")
    browser.driver.switch_to.active_element.send_keys("A CAT")
    cats = [number for number in range(POINTS) if "a cat" in shown_caption(number)]
    browser.wait(f"byId('found').textContent === '{len(cats)} of {POINTS} found'")
    visited = []
    for _ in range(len(cats) + 1):
        browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
        visited.append(browser.run("return selected"))
    assert visited == [*cats, cats[0]]
    browser.find("#search").clear()
    browser.find("#search").send_keys("nothing like it")
    browser.wait("byId('found').textContent.startsWith('0 of')")


@pytest.mark.parametrize("width", [1280, 320])
def test_a_map_of_images_begins_with_all_of_them_in_sight(width: int, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["map of images"], width=width)
    spans = "[...Array(count).keys()].flatMap((i) => [[screenX(i), canvas.clientWidth], [screenY(i), canvas.clientHeight]])"
    assert browser.run(f"return {spans}.every(([at, end]) => at >= imageSide() / 2 && at <= end - imageSide() / 2)")
    assert not browser.find("#about").is_displayed(), "it has no classes to click"


def test_zooming_enlarges_the_images_and_dragging_moves_the_map(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    browser.open(pages["map of images"])
    before = browser.run("return [view.zoom, imageSide(), view.x]")
    canvas = browser.find("canvas")
    pointer(browser).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -600).perform()
    browser.wait(f"view.zoom > {before[0]} && imageSide() > {before[1]}")
    pointer(browser).drag_and_drop_by_offset(canvas, 120, 40).perform()
    assert browser.run("return view.x") < before[2]
    assert not browser.run("return pinned"), "a drag is not a click"
    browser.find("#whole").click()
    assert browser.run("return [view.zoom, view.x, view.y]") == [1, 0.5, 0.5]
    browser.find("#in").click()
    assert browser.run("return view.zoom") > 1


def test_everything_can_be_reached_by_keys(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver import Keys

    browser.open(pages["map of classes"])
    focused = browser.run("return document.activeElement.tagName")
    reached = set()
    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.run("const one = document.activeElement; return one.id || one.tagName.toLowerCase()")
        reached.add(focused)
        if focused == "canvas":
            break
    assert {"search", "out", "in", "whole", "canvas"} <= reached
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    first = browser.run("return selected")
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    second = browser.run("return selected")
    assert browser.run(f"return screenX({second}) > screenX({first}) && pinned")
    browser.driver.switch_to.active_element.send_keys("+")
    assert browser.run("return view.zoom") > 1
    while not browser.run("return list.contains(document.activeElement)"):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    nearest = browser.run("return data.nearest[selected][0]")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.run("return selected") == nearest
    assert browser.run("return list.contains(document.activeElement)"), "the focus stays in the list"
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.run("return selected") == -1
    assert not browser.find("#selection").is_displayed()


def test_a_class_can_be_hidden(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["map of classes"])
    browser.find("#classes [aria-pressed]").click()
    browser.wait(f"byId('found').textContent === '{POINTS - len(range(0, POINTS, len(HARD)))} points'")
    assert browser.find("#classes [aria-pressed]").get_attribute("aria-pressed") == "false"
    browser.find("#all").click()
    browser.wait(f"byId('found').textContent === '{POINTS} points'")
