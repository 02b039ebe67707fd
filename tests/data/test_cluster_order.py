"""Clusters of rows that lie near each other, and batches that are made of whole ones."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from mmcl.data.batches import clusters
from mmcl.data.batches.cluster_order import ClusterOrder
from mmcl.data.batches.clusters import cluster_rows
from mmcl.errors import UserError
from tests.data.test_loader import TWO, Toy, batches, rows

GOLDEN = [[6, 7, 8, 0, 1, 2], [3, 4, 5, 9, 10, 9], [3, 4, 5, 0, 1, 2], [6, 7, 8, 10, 9, 10]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clusters")


def order_of(folder: Path, samples: int, cluster: int, per_batch: int, seed: int) -> ClusterOrder:
    file = folder / f"{samples}.npy"
    if not file.exists():
        np.save(file, np.random.default_rng(samples).permutation(samples))
    return ClusterOrder(file, samples, per_batch * cluster, cluster, seed)


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Samples, samples of a cluster, clusters of a batch, seed."""
    cluster = draw(st.integers(2, 7))
    samples = draw(st.integers(cluster, 60))
    return samples, cluster, draw(st.integers(1, samples // cluster)), draw(st.integers(0, 99))


@given(orders())
def test_every_epoch_shows_every_sample_once(folder: Path, case: tuple[int, int, int, int]) -> None:
    order = order_of(folder, *case)
    epoch, index = (np.concatenate(part) for part in zip(*(order.rows(step) for step in range(order.steps(4))), strict=True))
    for number in range(4):
        assert sorted(index[epoch == number][: order.size]) == list(range(order.size))
    assert (np.diff(epoch) >= 0).all()


@given(orders(), st.integers(0, 10**6))
def test_batches_are_made_of_whole_clusters(folder: Path, case: tuple[int, int, int, int], step: int) -> None:
    """All groups of K rows of a batch are clusters, but for those that hold what an epoch has left over at its two ends."""
    order, cluster = order_of(folder, *case), case[1]
    epoch, index = order.rows(step)
    cluster_of = np.empty(order.size, np.int64)
    cluster_of[np.load(order.file)] = np.arange(order.size) // cluster
    first = step * order.batch_size
    for start in range(0, order.batch_size, cluster):
        group = slice(start, start + cluster)
        of_epoch = (first + start) % order.size
        near_the_ends = of_epoch < cluster or of_epoch > order.size - 2 * cluster
        assert near_the_ends or len(np.unique(cluster_of[index[group]])) == 1
    assert (epoch == (first + np.arange(order.batch_size)) // order.size).all()


@given(orders(), st.integers(0, 10**6), st.data())
def test_ranks_one_after_the_other_are_the_global_batch(
    folder: Path, case: tuple[int, int, int, int], step: int, data: st.DataObject
) -> None:
    order = order_of(folder, *case)
    world = data.draw(st.sampled_from([w for w in range(1, order.batch_size + 1) if order.batch_size % w == 0]))
    shares = [order.rows(step, rank, world) for rank in range(world)]
    for part in (0, 1):
        assert np.concatenate([share[part] for share in shares]).tolist() == order.rows(step)[part].tolist()


def test_the_first_rows_never_change(tmp_path: Path) -> None:
    np.save(tmp_path / "order.npy", np.arange(11))
    order = ClusterOrder(tmp_path / "order.npy", 11, 6, 3, seed=7)
    assert [order.rows(step)[1].tolist() for step in range(4)] == GOLDEN


def test_the_clusters_of_a_batch_change_with_the_epoch(folder: Path) -> None:
    order = order_of(folder, 60, 6, 2, 0)
    assert len({frozenset(order.rows(step)[1].tolist()) for step in range(20)}) > 15


def test_batches_are_the_same_for_any_number_of_processes(folder: Path) -> None:
    order = order_of(folder, 40, 4, 3, 3)
    whole = batches(Toy(), views=TWO, order=order)
    for world in (2, 3, 4):
        ranks = [batches(Toy(), views=TWO, order=order, rank=rank, world=world) for rank in range(world)]
        for step in range(4):
            assert [row for part in ranks for row in rows(part[step])] == rows(whole[step])


@pytest.mark.parametrize(
    ("batch_size", "cluster", "message"),
    [
        (10, 4, "choose a multiple of it, up to 28 for 30 samples"),
        (32, 4, "choose a multiple of it, up to 28 for 30 samples"),
        (4, 8, "choose a multiple of it, up to 24 for 30 samples"),
        (31, 31, "choose 2 to 30, the number of samples"),
    ],
)
def test_batches_that_do_not_fit(batch_size: int, cluster: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ClusterOrder(tmp_path / "none.npy", 30, batch_size, cluster, seed=0)


def blobs(samples: int, width: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    center = rng.normal(size=(12, width))
    return (center[rng.integers(12, size=samples)] + 0.7 * rng.normal(size=(samples, width))).astype(np.float32)


@pytest.fixture
def small_parts() -> object:
    with mock.patch.multiple(clusters, _PART=100, _CELL=20, _LOOKED_AT=300, _BLOCK=70):
        yield


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("skip", [0, 7])
def test_clusters_hold_near_samples_and_none_of_the_nearest(skip: int) -> None:
    """Against all cosines, in float64: also those that are compared in no part."""
    row, size = blobs(430), 8
    found = cluster_rows(row, size, skip)
    assert sorted(found.order_N) == list(range(430))
    unit = row.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, np.nan)
    groups = found.order_N[: 430 // size * size].reshape(-1, size)
    within = cosine[groups[:, :, None], groups[:, None, :]]
    assert np.nanmean(within) == pytest.approx(found.cosine, abs=1e-4)
    assert found.random == pytest.approx(np.nanmean(cosine), abs=0.1)
    assert found.cosine > found.random + 0.25
    rank = np.argsort(np.argsort(-np.nan_to_num(cosine, nan=-2), axis=1), axis=1)
    nearest = (rank < skip) | (rank < skip).T
    assert not nearest[groups[:, :, None], groups[:, None, :]].any()
    assert found.crowded == 0


@pytest.mark.usefixtures("small_parts")
def test_rounding_and_threads_change_nothing(tmp_path: Path) -> None:
    """Rows in a file, in another type and length, and products by one thread or several."""
    row = blobs(1000, 64).astype(np.float16)
    np.save(tmp_path / "rows.npy", row)
    found = [cluster_rows(np.load(tmp_path / "rows.npy", mmap_mode="r"), 8, 5)]
    for threads in (1, 3):
        with threadpool_limits(threads):
            found.append(cluster_rows(row.astype(np.float64) * np.float64(4.0), 8, 5))
    assert all(one.order_N.tolist() == found[0].order_N.tolist() for one in found)


@pytest.mark.usefixtures("small_parts")
def test_copies_are_put_apart() -> None:
    """Fifty samples with four copies each: no two copies are in one cluster."""
    row = np.repeat(np.random.default_rng(1).normal(size=(50, 16)), 4, axis=0)
    found = cluster_rows(row, 10, 3)
    assert found.crowded == 0
    for group in found.order_N.reshape(-1, 10):
        assert len(np.unique(group // 4)) == 10


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("row", [np.ones((300, 4)), np.zeros((300, 4))], ids=["equal", "zero"])
def test_rows_without_any_difference(row: np.ndarray) -> None:
    found = cluster_rows(row, 10, 3)
    assert sorted(found.order_N) == list(range(300))
    assert found.crowded == 300
