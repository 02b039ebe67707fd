"""Two-dimensional projections of embeddings, with measures of their quality.

A projection shows neighborhoods; distances between clusters and their sizes have no meaning.
"""

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
from mmcl.data.sample import ImageLike
from mmcl.errors import UserError, how_to_install
from mmcl.evaluate.reporting.figures import scatter
from mmcl.evaluate.reporting.map_page import FEW, map_page, thumbnail_side
from mmcl.evaluate.reporting.thumbnails import square
from mmcl.evaluate.validation import Array, integers, unit_rows
from mmcl.files.atomic import write_file
from mmcl.rng import permutation

ProjectionMethod = Literal["tsne", "umap", "pca"]
NAMES: dict[ProjectionMethod, str] = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
FEWEST = 5
_ITERATIONS = 500
_SHOWN = 8
_NO_UMAP = f"method umap needs umap-learn: {how_to_install('umap')}; or choose tsne"


@dataclass(frozen=True, eq=False)
class Projection:
    """A two-dimensional map of embeddings.

    Attributes:
        points: float32 [n, 2], the coordinates.
        rows: int64 [n], the row numbers of the embeddings that were drawn.
        method: projection method, see `project`.
        neighbors: k, for the next two measures.
        trustworthiness: 1 if the k nearest neighbors of every point on the map are near it in the embedding too (Venna and
            Kaski, 2001; rank-based, from 0 to 1); about 0.5 for random points.
        neighbors_kept: share of the k nearest neighbors by cosine that are among the k nearest on the map.
        labels: int64 [n], or None.
        class_names: names of the labels, or None.
        captions: captions of the points, or None.
        images: thumbnails of the points, or None.
        nearest: int64 [n, m], numbers of the nearest other points by cosine in the embedding, nearest first; up to 8.
        cosine: float32 [n, m], their cosines.
        title: title of the map.

    Example:
        >>> project(np.eye(6), method="pca", neighbors=2, title="six directions").points.shape
        (6, 2)
    """

    points: np.ndarray
    rows: np.ndarray
    method: ProjectionMethod
    neighbors: int
    trustworthiness: float
    neighbors_kept: float
    labels: np.ndarray | None
    class_names: Sequence[str] | None
    captions: Sequence[str] | None
    images: Sequence[Image.Image] | None
    nearest: np.ndarray
    cosine: np.ndarray
    title: str

    def to_png(self) -> bytes:
        """Returns an image of the map, colored by class; a small map without classes shows the images themselves."""
        images = self.images if self.labels is None and len(self.points) < FEW else None
        return scatter(self.points, self.labels, self.class_names, images, title=self.title)

    def to_html(self) -> str:
        """Returns an interactive page, which works offline: images, captions, nearest neighbors in the embedding, search."""
        note = (
            f"Neighborhoods count; distances and sizes on a map mean little. Trustworthiness {self.trustworthiness:.3f}; "
            f"of {self.neighbors} nearest neighbors {100 * self.neighbors_kept:.0f} % are nearest here too."
        )
        what = self.points, self.labels, self.class_names, self.captions, self.images, (self.nearest, self.cosine)
        return map_page(*what, title=self.title, note=note)

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
    neighbors: int = 10,
    perplexity: float = 30.0,
    seed: int = 0,
    title: str = "",
) -> Projection:
    """Projects rows to two dimensions by cosine: `project(emb, labels, captions=texts, images=paths).save("map.html")`.

    Args:
        emb: finite rows [N, D], at least 5; they are scaled to unit length.
        labels: integers [N], shown as colors; None for a single color.
        method: "tsne" (van der Maaten and Hinton, 2008), "umap" (McInnes et al., 2018; needs the extra `umap`) or "pca".
        class_names: names of the labels; None shows their numbers.
        captions: N texts, shown and searched on the page.
        images: N images or paths, shown on the page; only those of the drawn rows are read.
        max_points: maximum number of rows drawn; more rows are subsampled at random.
        neighbors: k of the two quality measures, capped at half of the rows; UMAP uses k too, but at least 15.
        perplexity: t-SNE only: roughly the number of effective neighbors, capped at a third of the rows.
        seed: seed of the subsampling and of the method.
        title: title of the map.

    Raises:
        UserError: there are fewer than 5 rows, shapes do not match, an embedding is not finite, an image cannot be read, or
            the method is unknown or not installed.

    Example:
        >>> emb = np.random.default_rng(0).normal(size=(30, 8))
        >>> found = project(emb, [0, 1, 2] * 10, method="pca")
        >>> found.points.shape, 0 <= found.neighbors_kept <= 1
        ((30, 2), True)
        >>> found.save("map.html")
    """
    check_arguments(method, max_points, neighbors)
    unit = unit_rows(emb, "emb").cpu().numpy()
    if len(unit) < FEWEST:
        raise UserError(f"a map needs at least {FEWEST} rows, not {len(unit)}")
    for name, given in (("captions", captions), ("images", images)):
        if given is not None and len(given) != len(unit):
            raise UserError(f"project: there are {len(unit)} rows and {len(given)} {name}; give one for each row")
    label = None if labels is None else integers(labels, "labels", len(unit)).cpu().numpy()
    rows = chosen_rows(len(unit), max_points, seed)
    drawn = unit[rows]
    k = min(neighbors, (len(rows) - 1) // 2)
    draw: dict[str, Callable[[], np.ndarray]] = {
        "tsne": lambda: tsne(drawn, perplexity=perplexity, seed=seed),
        "umap": lambda: umap(drawn, neighbors=max(k, 2), seed=seed),
        "pca": lambda: pca(drawn),
    }
    points = draw[method]()
    nearest = _nearest_others(drawn, max(k, min(_SHOWN, len(rows) - 1)))
    return Projection(
        points=points,
        rows=rows,
        method=method,
        neighbors=k,
        trustworthiness=trustworthiness(drawn, points, k),
        neighbors_kept=_share_kept(nearest[:, :k], points),
        labels=None if label is None else label[rows],
        class_names=class_names,
        captions=None if captions is None else [captions[row] for row in rows.tolist()],
        images=None if images is None else _thumbnails(images, rows),
        nearest=nearest[:, :_SHOWN],
        cosine=np.einsum("nd,nmd->nm", drawn, drawn[nearest[:, :_SHOWN]]),
        title=title,
    )


def check_arguments(method: str, max_points: int, neighbors: int) -> None:
    """Raises UserError for arguments of `project` that are invalid for any rows, or a method that is not installed."""
    if method not in get_args(ProjectionMethod):
        raise UserError(f"project: method is {method!r}; choose one of {', '.join(get_args(ProjectionMethod))}")
    if max_points < FEWEST:
        raise UserError(f"a map needs max_points of at least {FEWEST}, not {max_points}")
    if neighbors < 1:
        raise UserError(f"a map needs neighbors of at least 1, not {neighbors}")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError(_NO_UMAP)


def _thumbnails(images: Sequence[ImageLike], rows: np.ndarray) -> list[Image.Image]:
    side = thumbnail_side(len(rows))

    def read(row: int) -> Image.Image:
        image = images[row]
        return square(decode(image, name=None if isinstance(image, str | Path) else f"image {row}"), side)

    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes.
        return list(pool.map(read, rows.tolist()))


def chosen_rows(count: int, max_points: int, seed: int) -> np.ndarray:
    """Rows to draw, int64 [n]: all, or `max_points` at random, in ascending order, so that choosing again keeps them all."""
    return np.sort(permutation(count, seed)[:max_points])


def tsne(row_ND: np.ndarray, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE of rows: float32 [N, 2]. Runs 500 iterations, which suffice for a map; equal rows get equal points."""
    from sklearn.manifold import TSNE

    # The default initialization by principal components divides by their standard deviation.
    start = "pca" if row_ND.shape[1] > 1 and not _is_collapsed(row_ND) else "random"
    perplexity = min(perplexity, (len(row_ND) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, max_iter=_ITERATIONS, random_state=seed)
    place_N2: np.ndarray = tsne.fit_transform(row_ND)
    return place_N2


def umap(row_ND: np.ndarray, *, neighbors: int, seed: int = 0) -> np.ndarray:
    """UMAP of rows: float32 [N, 2]. Raises UserError if umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(_NO_UMAP) from None
    start = "random" if len(row_ND) < 20 else "spectral"  # Spectral needs more rows than neighbors and dimensions.
    model = UMAP(n_neighbors=min(max(15, neighbors), len(row_ND) - 1), init=start, random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(row_ND), np.float32)


def pca(row_ND: np.ndarray) -> np.ndarray:
    """First two principal components of rows: float32 [N, 2]; missing components are zero."""
    from sklearn.decomposition import PCA

    width = min(2, row_ND.shape[1])
    points = np.zeros((len(row_ND), 2), np.float32)
    if not _is_collapsed(row_ND):
        points[:, :width] = PCA(width, random_state=0).fit_transform(row_ND)
    return points


def _is_collapsed(row_ND: np.ndarray) -> bool:
    """True if all rows are equal up to rounding, so that they have no principal direction."""
    return bool(row_ND.std(axis=0).max() <= 1e-6)


def trustworthiness(row_ND: np.ndarray, point_N2: np.ndarray, k: int) -> float:
    """Trustworthiness of a map, see `Projection`; `k` must be below N / 2."""
    from sklearn.manifold import trustworthiness as measure

    return float(measure(row_ND, point_N2, n_neighbors=k))


def neighbors_kept(row_ND: np.ndarray, point_N2: np.ndarray, k: int) -> float:
    """Share of each row's `k` nearest neighbors that are among the `k` nearest on the map; ties go to the lower row number."""
    return _share_kept(_nearest_others(row_ND, k), point_N2)


def _share_kept(nearest_Nk: np.ndarray, point_N2: np.ndarray) -> float:
    after = _nearest_others(point_N2, nearest_Nk.shape[1])
    return float((nearest_Nk[:, :, None] == after[:, None, :]).any(axis=2).mean())


def _nearest_others(row_ND: np.ndarray, k: int) -> np.ndarray:
    """Row numbers of the k nearest other rows, int64 [N, k]."""
    from sklearn.metrics.pairwise import euclidean_distances

    distance: np.ndarray = euclidean_distances(row_ND.astype(np.float64))
    np.fill_diagonal(distance, np.inf)
    return distance.argsort(axis=1, kind="stable")[:, :k]
