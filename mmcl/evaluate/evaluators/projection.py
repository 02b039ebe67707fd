"""Embeddings in the plane, with how far the plane can be trusted. It shows neighbourhoods; distances and sizes mean nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mmcl.data.images.decode import decode
from mmcl.data.source import ImageLike
from mmcl.errors import UserError
from mmcl.evaluate.reporting.figures import scatter
from mmcl.evaluate.reporting.map_page import map_page, thumbnail
from mmcl.evaluate.validation import Array, integers, unit_rows
from mmcl.files.atomic import write_file
from mmcl.rng import permutation

ProjectionMethod = Literal["tsne", "umap", "pca"]
NAMES: dict[ProjectionMethod, str] = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
FEWEST = 5
_ITERATIONS = 500
_NO_UMAP = "method umap needs umap-learn: pip install 'mmcl[umap]', or choose tsne"


@dataclass(frozen=True, eq=False)
class Projection:
    """Points in the plane and what they are of.

    Attributes:
        points: float32 [n, 2].
        rows: int64 [n], the numbers of the embeddings that were drawn.
        method: how.
        neighbours: k, for the next two.
        trustworthiness: 1 where no point has a neighbour among its k nearest on the map that was far away in the embedding
            (Venna and Kaski, 2001; of ranks, from 0 to 1); about 0.5 for points at random.
        neighbours_kept: the share of the k nearest neighbours by cosine that are among the k nearest on the map.
        labels: int64 [n], or None.
        class_names, captions: of the labels and of the points, or None.
        images: of the points, as small as the page shows them, or None.
        title: of the map.

    Example:
        >>> project(np.eye(6), method="pca", neighbours=2, title="six directions").points.shape
        (6, 2)
    """

    points: np.ndarray
    rows: np.ndarray
    method: ProjectionMethod
    neighbours: int
    trustworthiness: float
    neighbours_kept: float
    labels: np.ndarray | None
    class_names: Sequence[str] | None
    captions: Sequence[str] | None
    images: Sequence[Image.Image] | None
    title: str

    def to_png(self) -> bytes:
        """A image of the map, coloured by class."""
        return scatter(self.points, self.labels, self.class_names, title=self.title)

    def to_html(self) -> str:
        """A page to explore the map: images and captions under the pointer, search, classes to hide. It needs no network."""
        note = (
            f"Neighbourhoods count; distances and sizes on a map mean little. Trustworthiness {self.trustworthiness:.3f}; "
            f"of {self.neighbours} nearest neighbours {self.neighbours_kept:.0%} are nearest here too."
        )
        return map_page(self.points, self.labels, self.class_names, self.captions, self.images, title=self.title, note=note)

    def save(self, path: str | Path) -> None:
        """Writes map.html or map.png, by the ending. Raises UserError for any other."""
        path = Path(path)
        if path.suffix == ".html":
            write_file(path, self.to_html())
        elif path.suffix == ".png":
            write_file(path, self.to_png())
        else:
            raise UserError(f"{path}: a map is saved as .html, to explore, or as .png")


def project(
    emb: Array,
    labels: Array | Sequence[int] | None = None,
    *,
    method: ProjectionMethod = "tsne",
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    images: Sequence[ImageLike] | None = None,
    max_points: int = 2000,
    neighbours: int = 10,
    perplexity: float = 30.0,
    seed: int = 0,
    title: str = "",
) -> Projection:
    """Draws rows in the plane by their cosines: `project(emb, labels, captions=texts, images=paths).save("map.html")`.

    Args:
        emb: finite rows [N, D], at least 5; they are scaled to unit length.
        labels: integers [N], for the colours; None for one colour.
        method: "tsne" (van der Maaten and Hinton, 2008), "umap" (McInnes et al., 2018; needs the extra `umap`) or "pca".
        class_names: of the labels; None shows their numbers.
        captions: N texts, shown and searched on the page.
        images: N images or paths, shown on the page; only those of rows that are drawn are read.
        max_points: rows drawn, chosen at random where there are more.
        neighbours: k of the two measures of quality, and of UMAP at least; at most half of the rows.
        perplexity: of t-SNE, about the number of neighbours that a row has; at most a third of the rows.
        seed: of that choice and of the method.
        title: of the map.

    Raises:
        UserError: fewer than 5 rows, shapes that do not fit, embeddings that are not finite, a image that cannot be read, a
            method that does not exist or is not installed.

    Example:
        >>> emb = np.random.default_rng(0).normal(size=(30, 8))
        >>> found = project(emb, [0, 1, 2] * 10, method="pca")
        >>> found.points.shape, 0 <= found.neighbours_kept <= 1
        ((30, 2), True)
        >>> found.save("map.html")
    """
    check_arguments(method, max_points, neighbours)
    unit = unit_rows(emb, "emb").cpu().numpy()
    if len(unit) < FEWEST:
        raise UserError(f"a map needs at least {FEWEST} rows, not {len(unit)}")
    for name, given in (("captions", captions), ("images", images)):
        if given is not None and len(given) != len(unit):
            raise UserError(f"project: there are {len(unit)} rows and {len(given)} {name}; give one for each row")
    label = None if labels is None else integers(labels, "labels", len(unit)).cpu().numpy()
    rows = chosen_rows(len(unit), max_points, seed)
    drawn = unit[rows]
    k = min(neighbours, (len(rows) - 1) // 2)
    draw: dict[str, Callable[[], np.ndarray]] = {
        "tsne": lambda: tsne(drawn, perplexity=perplexity, seed=seed),
        "umap": lambda: umap(drawn, neighbours=max(k, 2), seed=seed),
        "pca": lambda: pca(drawn),
    }
    points = draw[method]()
    return Projection(
        points=points,
        rows=rows,
        method=method,
        neighbours=k,
        trustworthiness=trustworthiness(drawn, points, k),
        neighbours_kept=neighbours_kept(drawn, points, k),
        labels=None if label is None else label[rows],
        class_names=class_names,
        captions=None if captions is None else [captions[row] for row in rows.tolist()],
        images=None if images is None else _thumbnails(images, rows),
        title=title,
    )


def check_arguments(method: str, max_points: int, neighbours: int) -> None:
    """Raises UserError for arguments of `project` that no rows would suit, or a method that is not installed."""
    if method not in get_args(ProjectionMethod):
        raise UserError(f"project: method is {method!r}; choose one of {', '.join(get_args(ProjectionMethod))}")
    if max_points < FEWEST:
        raise UserError(f"a map needs max_points of at least {FEWEST}, not {max_points}")
    if neighbours < 1:
        raise UserError(f"a map needs neighbours of at least 1, not {neighbours}")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError(_NO_UMAP)


def _thumbnails(images: Sequence[ImageLike], rows: np.ndarray) -> list[Image.Image]:
    def read(row: int) -> Image.Image:
        image = images[row]
        return thumbnail(decode(image, name=None if isinstance(image, str | Path) else f"image {row}"))

    with ThreadPoolExecutor() as pool:  # Pillow works without the interpreter's lock.
        return list(pool.map(read, rows.tolist()))


def chosen_rows(count: int, max_points: int, seed: int) -> np.ndarray:
    """The rows that are drawn, int64 [n]: all, or `max_points` at random; in their order, so that choosing again keeps all."""
    return np.sort(permutation(count, seed)[:max_points])


def tsne(row_ND: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE of rows: float32 [N, 2]. 500 iterations, enough for a image; equal rows fall together."""
    from sklearn.manifold import TSNE

    # The usual start, principal components, divides by their deviation.
    start = "pca" if row_ND.shape[1] > 1 and not _is_collapsed(row_ND) else "random"
    perplexity = min(perplexity, (len(row_ND) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, max_iter=_ITERATIONS, random_state=seed)
    place_N2: np.ndarray = tsne.fit_transform(row_ND)
    return place_N2


def umap(row_ND: np.ndarray, *, neighbours: int, seed: int = 0) -> np.ndarray:
    """UMAP of rows: float32 [N, 2]. Raises UserError when umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(_NO_UMAP) from None
    start = "random" if len(row_ND) < 20 else "spectral"  # The spectral one needs more rows than neighbours and dimensions.
    model = UMAP(n_neighbors=min(max(15, neighbours), len(row_ND) - 1), init=start, random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(row_ND), np.float32)


def pca(row_ND: np.ndarray) -> np.ndarray:
    """The first two principal components of rows: float32 [N, 2]; zeros where there are fewer."""
    from sklearn.decomposition import PCA

    width = min(2, row_ND.shape[1])
    points = np.zeros((len(row_ND), 2), np.float32)
    if not _is_collapsed(row_ND):
        points[:, :width] = PCA(width, random_state=0).fit_transform(row_ND)
    return points


def _is_collapsed(row_ND: np.ndarray) -> bool:
    """True if the rows are one point but for rounding, and have no direction of their own."""
    return bool(row_ND.std(axis=0).max() <= 1e-6)


def trustworthiness(row_ND: np.ndarray, point_N2: np.ndarray, k: int) -> float:
    """See `Projection`; `k` below N / 2."""
    from sklearn.manifold import trustworthiness as measure

    return float(measure(row_ND, point_N2, n_neighbors=k))


def neighbours_kept(row_ND: np.ndarray, point_N2: np.ndarray, k: int) -> float:
    """The share of each row's `k` nearest others that are among the `k` nearest on the map too; equal ones by row number."""
    before, after = _nearest_others(row_ND, k), _nearest_others(point_N2, k)
    return float((before[:, :, None] == after[:, None, :]).any(axis=2).mean())


def _nearest_others(row_ND: np.ndarray, k: int) -> np.ndarray:
    """Row numbers, int64 [N, k]."""
    from sklearn.metrics.pairwise import euclidean_distances

    distance: np.ndarray = euclidean_distances(row_ND.astype(np.float64))
    np.fill_diagonal(distance, np.inf)
    return distance.argsort(axis=1, kind="stable")[:, :k]
