"""Maps preserve neighbors and measure how well; their pages escape all data and need no network."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Task, embedding_map, project
from mmcl.evaluate.evaluators.embedding_map import evaluate_embedding_map
from mmcl.evaluate.evaluators.projection import chosen_rows, neighbors_kept, trustworthiness, tsne
from mmcl.evaluate.reporting import map_page
from mmcl.evaluate.reporting.map_page import FEW, MAX_BYTES, thumbnail_side
from mmcl.terminal import printable
from mmcl.testing.patterns import NAMES, PatternModel, PatternSource
from tests.evaluate.toys import unit

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "{{data}}",
    "a\u2028b\ud800",
    '"><img src=x onerror=alert(1)>',
]


def clusters(rows: int, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(0).integers(4, size=rows)
    return (unit((4, 16), 1)[labels] + noise * unit((rows, 16), 2)).astype(np.float32), labels


@pytest.mark.parametrize("method", ["tsne", "pca", "umap"])
def test_neighbors_stay_together(method: Any) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    rows, labels = clusters(120)
    drawn, again = (project(rows, labels, method=method, perplexity=15) for _ in range(2))
    np.testing.assert_array_equal(drawn.points, again.points)
    distance = ((drawn.points[:, None] - drawn.points[None]) ** 2).sum(2) + 1e9 * np.eye(120)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.9
    assert drawn.trustworthiness > 0.8
    shuffled = np.random.default_rng(1).permutation(drawn.points)
    assert abs(trustworthiness(rows, shuffled, 10) - 0.5) < 0.1
    assert neighbors_kept(rows, shuffled, 10) < 0.2 < drawn.neighbors_kept


def test_quality_equals_its_definition_in_loops() -> None:
    """Venna and Kaski (2001), eq. 2: how far in the embedding the neighbors are that only the map has."""
    rng, n, k = np.random.default_rng(0), 30, 4
    rows, points = unit((n, 6), 3).astype(np.float64), rng.normal(size=(n, 2))
    penalty = kept = 0
    for i in range(n):
        others = [j for j in range(n) if j != i]
        near, shown = (sorted(others, key=np.linalg.norm(x - x[i], axis=1).__getitem__) for x in (rows, points))
        kept += len(set(near[:k]) & set(shown[:k]))
        penalty += sum(near.index(j) + 1 - k for j in shown[:k] if j not in near[:k])
    assert trustworthiness(rows, points, k) == pytest.approx(1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1)))
    assert neighbors_kept(rows, points, k) == pytest.approx(kept / (n * k))


def test_what_is_flat_is_drawn_as_it_is() -> None:
    drawn = project(unit((40, 2), 0), method="pca")
    assert (drawn.trustworthiness, drawn.neighbors_kept) == (1, 1)


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("rows", [5, 40])
def test_a_collapsed_model_and_few_points(rows: int, method: Any) -> None:
    drawn = project(np.ones((rows, 3)), method=method)
    assert np.isfinite(drawn.points).all()
    assert drawn.to_png()
    assert drawn.to_html()


def test_rows_are_chosen_once() -> None:
    rows = chosen_rows(50, 20, seed=3)
    assert len(set(rows.tolist())) == 20
    assert chosen_rows(len(rows), 20, seed=3).tolist() == list(range(20))
    assert project(unit((50, 4), 0), method="pca", max_points=20, seed=3).rows.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb": np.eye(4)}, "at least 5 rows"),
        ({"emb": np.full((9, 2), np.nan)}, "not finite"),
        ({"method": "lda"}, "method is 'lda'; choose one of tsne, umap, pca"),
        ({"captions": ["a"]}, "9 rows and 1 captions"),
        ({"images": [Path("none.png")] * 9}, r"none\.png"),
        ({"neighbors": 0}, "neighbors of at least 1"),
    ],
)
def test_mistakes_are_user_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        project(**{"emb": np.eye(9), "method": "pca", **change})


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'mmcl\[umap\]'"):
        project(np.eye(9), method="umap")


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and what its scripts say."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.scripts[0])
        return data


def test_nothing_from_the_data_becomes_markup() -> None:
    names = [f"{text} class" for text in HOSTILE]
    options: dict[str, Any] = {"captions": HOSTILE, "class_names": names, "method": "pca"}
    page = project(unit((5, 3), 0), np.arange(5), title=HOSTILE[0], **options).to_html()
    page.encode("utf-8")
    found, harmless = Page(page), Page(project(unit((5, 3), 0), np.arange(5), method="pca", class_names=["a"] * 5).to_html())
    assert found.tags == harmless.tags
    assert found.data["captions"] == [printable(text) for text in HOSTILE]
    assert found.data["classes"] == [printable(name) for name in names]
    assert "<h1>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;</h1>" in page
    assert "innerHTML" not in page
    assert "document.write" not in page


def test_a_page_needs_nothing_from_outside() -> None:
    images = [Image.new("RGB", (30, 20), "red")] * 6
    page = project(unit((6, 3), 0), method="pca", captions=["a"] * 6, images=images).to_html()
    assert not re.search(r"https?:|//[a-z]", re.sub("base64,[A-Za-z0-9+/=]+", "", page))
    assert all({"src", "href"}.isdisjoint(attributes) for _, attributes in Page(page).tags)
    (policy,) = (attributes["content"] for tag, attributes in Page(page).tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_point_has_its_own_image_caption_and_class() -> None:
    """Where rows are left out too: their images are not even read."""
    rows, labels = clusters(30)
    kept = chosen_rows(30, 7, seed=0).tolist()
    shades = [8 * row for row in range(30)]
    images = [Image.new("L", (9, 9), shades[row]) if row in kept else Path("missing.png") for row in range(30)]
    captions = [f"row {row}" for row in range(30)]
    drawn = project(rows, labels, captions=captions, images=images, max_points=7, method="pca", class_names=list("abcd"))
    data = Page(drawn.to_html()).data
    assert data["captions"] == [captions[row] for row in kept]
    assert [data["classes"][label] for label in data["label"]] == ["abcd"[labels[row]] for row in kept]
    assert [data["groups"][group]["name"] for group in data["group"]] == ["abcd"[labels[row]] for row in kept]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["sheet"]["image"].partition(",")[2]))).convert("L"))
    for number, row in enumerate(kept):
        side = data["sheet"]["side"]
        y, x = (side * cell + side // 2 for cell in divmod(number, data["sheet"]["columns"]))
        assert abs(int(sheet[y, x]) - shades[row]) <= 3
    points = np.array([data["x"], data["y"]]).T
    assert points.min() >= 0
    assert points.max() <= 1
    ratio = np.ptp(points, axis=0) / np.ptp(drawn.points, axis=0)
    assert ratio[0] == pytest.approx(ratio[1], abs=1e-3), "the same scale both ways"


def test_pages_stay_small() -> None:
    noise = np.random.default_rng(0).integers(256, size=(100, 300, 200, 3)).astype(np.uint8)
    page = project(unit((100, 4), 0), method="pca", images=list(noise), captions=["long " * 9999] * 100).to_html()
    assert len(page) < 100 * 300 + MAX_BYTES * 4 / 3 + 100_000
    assert len(Page(page).data["captions"][0]) == 300


@pytest.mark.parametrize(("count", "side"), [(20, 96), (FEW, 96), (FEW + 1, 64), (3000, 64)])
def test_images_are_larger_where_there_are_few(count: int, side: int) -> None:
    assert thumbnail_side(count) == side


def test_images_shrink_until_a_page_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = list(np.random.default_rng(0).integers(256, size=(20, 96, 96, 3)).astype(np.uint8))
    sides = []
    for limit in (200_000, 60_000, 10_000):
        monkeypatch.setattr(map_page, "MAX_BYTES", limit)
        sheet = Page(project(unit((20, 4), 0), method="pca", images=noise).to_html()).data["sheet"]
        assert len(base64.b64decode(sheet["image"].partition(",")[2])) <= limit
        sides.append(sheet["side"])
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 96
    assert sides[-1] < 96
    monkeypatch.setattr(map_page, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="a page has no room for the images of 20 points; lower max_points"):
        project(unit((20, 4), 0), method="pca", images=noise).to_html()


def test_nearest_are_those_of_the_embedding_and_not_of_the_map() -> None:
    rows = unit((50, 12), 0)
    drawn = project(rows, method="pca", max_points=30, seed=1)
    data = Page(drawn.to_html()).data
    kept = rows[drawn.rows].astype(np.float64)
    for point, (others, cosines) in enumerate(zip(data["nearest"], data["cosine"], strict=True)):
        cosine = kept @ kept[point]
        order = [other for other in np.argsort(-cosine, kind="stable").tolist() if other != point]
        assert others == order[:8]
        np.testing.assert_allclose(cosines, cosine[others], atol=6e-4)
    on_map = ((drawn.points[:, None] - drawn.points[None]) ** 2).sum(2) + 1e9 * np.eye(30)
    assert (on_map.argmin(1) != [others[0] for others in data["nearest"]]).any(), "the map alone would say otherwise"


@pytest.mark.parametrize(("count", "labels", "begins"), [(20, False, True), (20, True, False), (FEW, False, False)])
def test_maps_of_few_points_without_classes_begin_with_images(count: int, labels: bool, begins: bool) -> None:
    page = project(unit((count, 4), 0), np.arange(count) % 3 if labels else None, method="pca").to_html()
    assert Page(page).data["asImages"] == begins


def test_saved_by_the_ending(tmp_path: Path) -> None:
    drawn = project(*clusters(9), method="pca")
    drawn.save(tmp_path / "map.html")
    drawn.save(tmp_path / "map.png")
    assert (tmp_path / "map.html").read_text(encoding="utf-8") == drawn.to_html()
    assert (tmp_path / "map.png").read_bytes() == drawn.to_png()
    with pytest.raises(UserError, match=r"saved as \.html"):
        drawn.save(tmp_path / "map.pdf")


def test_report_of_a_map() -> None:
    report = embedding_map(*clusters(40), method="pca", neighbors=5, data="a/b", model="mine")
    drawn = project(*clusters(40), method="pca", neighbors=5)
    assert {row.metric: row.value for row in report.metrics} == {
        "pca_trustworthiness@5": drawn.trustworthiness,
        "pca_neighbors_kept@5": drawn.neighbors_kept,
    }
    assert list(report.figures) == list(report.pages) == ["embedding_map_a_b_mine"]


def test_evaluator_shows_images_captions_and_classes() -> None:
    source = PatternSource(36, seed=0)
    report = evaluate_embedding_map(CachedModel(PatternModel()), Task("patterns", source), max_points=20, method="pca")
    (page,) = report.pages.values()
    data, rows = Page(page).data, chosen_rows(36, 20, seed=0).tolist()
    assert data["captions"] == [source[row].captions[0] for row in rows]
    assert sorted(data["classes"]) == sorted(NAMES)
    assert data["sheet"] is not None


def test_tsne_starts_at_random_for_one_column() -> None:
    assert tsne(np.ones((6, 1), np.float32)).shape == (6, 2)
