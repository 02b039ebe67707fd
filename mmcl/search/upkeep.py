"""Care of an index on disk: bringing it up to date, checking, versions, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Self

from mmcl.errors import UserError
from mmcl.logging import get_logger
from mmcl.search import maintenance, table_indices
from mmcl.search.calibration import STALE, fit
from mmcl.search.collection import Given, open_collection
from mmcl.search.content import Encoder
from mmcl.search.lance_store import LanceStore
from mmcl.search.recall import Recall, measure_recall
from mmcl.search.store import Store
from mmcl.search.sync import SyncReport, sync
from mmcl.search.table_indices import Approximate
from mmcl.types import EmbeddingModel

logger = get_logger(__name__)


class Upkeep:
    """Methods of an index that need one on disk."""

    store: Store

    @property
    def model(self) -> EmbeddingModel:
        """The model of the index."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the writer's lock; the index can still be searched."""
        if isinstance(self.store, LanceStore):
            self.store.table.release()

    def sync(
        self,
        collection: Given | None = None,
        *,
        verify: bool = False,
        allow_empty: bool = False,
        skip_unreadable: bool = False,
        batch: int = 512,
        progress: bool = False,
    ) -> SyncReport:
        """Brings an index on disk up to date with its collection; the result equals a rebuild.

        New, changed, moved, copied, touched, removed and repaired files are found; only content that is not in the index yet is
        encoded. A second sync does nothing. Another process may search meanwhile.

        Args:
            collection: by default where it was built from.
            verify: read every file, instead of trusting sizes and times.
            allow_empty: go on if more than half of the images are gone, which may be a disk that is not mounted.
            skip_unreadable: leave the rows of folders that cannot be read as they are.
            batch: images per commit; as many are lost when the process is killed.
            progress: whether to show a progress bar.

        Raises:
            UserError: another process is writing, the collection is not there, or the model is another one.
        """
        store = self._on_disk("sync")
        about = store.table.about
        if collection is None and not about.collection:
            raise UserError("the index does not know where its images come from; give the collection")
        found = open_collection(
            about.collection if collection is None else collection,
            kind=about.kind if collection is None else "",
            columns=about.columns or None,
        )
        if dict(found.column_kinds) != dict(about.column_kinds):
            raise UserError(f"{about.columns}: has other columns than the index; build it again")
        with store.table.locked():
            report = sync(
                store.table,
                found,
                Encoder(self.model),
                verify=verify,
                allow_empty=allow_empty,
                skip_unreadable=skip_unreadable,
                batch=batch,
                progress=progress,
            )
            self._forget()
            self._calibrate_again(store)
        return report

    def refresh(self) -> None:
        """Goes to the newest version of an index on disk, which another process may have written."""
        if isinstance(self.store, LanceStore):
            self.store.refresh()

    def optimize(self) -> None:
        """Joins the pieces that commits leave, and removes versions older than an hour and what killed processes have left.

        Raises:
            UserError: the index is not on disk, or another process writes it.
        """
        store = self._on_disk("optimize")
        with store.table.locked():
            store.table.optimize()
        self._forget()

    def build_ann(self, kind: Approximate = "ivf_flat") -> None:
        """Makes an approximate index of an index on disk, in place of another one; until then every image is compared.

        From then on a search reads a part of the vectors, may miss some of the nearest images, and says so: `Hits.exact` is
        false. Questions with a filter or sorted by date, and those for texts, are still answered exactly. Measure what it
        misses by `recall`.

        Args:
            kind: "ivf_flat" keeps vectors as they are; "ivf_rq" keeps one bit a number, where they do not fit into memory.

        Raises:
            UserError: the kind is unknown, there are no images, rows are narrow, or another process writes.
        """
        store = self._on_disk("build_ann")
        if store.narrow is not None:
            raise UserError(
                f"{store.table.place}: has narrow rows ({store.narrow}), which are compared already; build one without"
            )
        with store.table.locked():
            table_indices.index_vectors(store.table, kind)
            store.table.optimize()
        self._forget()

    def drop_ann(self) -> None:
        """Removes the approximate index; every image is compared again. Raises UserError if another process writes."""
        store = self._on_disk("drop_ann")
        with store.table.locked():
            table_indices.drop_vectors(store.table)
        self._forget()

    def recall(self, n: int = 200, k: int = 10, *, rescore: int | None = None) -> Recall:
        """Measures which share of the k nearest images narrow rows or an approximate index find, over n queries.

        Raises:
            UserError: the index is not on disk or keeps no vectors, n or k is not from 1 to the number of images, or `rescore`
                (see `Index.search`) is given without narrow rows.
        """
        return measure_recall(self._on_disk("recall"), n, k, rescore=rescore)

    def verify(self) -> list[str]:
        """Reads every row of an index on disk. Returns a line for each finding; see `mmcl.search.maintenance`."""
        return maintenance.verify(self._on_disk("verify"))

    def versions(self) -> list[maintenance.Version]:
        """Returns the versions of an index on disk that can be restored, oldest first."""
        return maintenance.versions(self._on_disk("versions"))

    def restore(self, number: int) -> None:
        """Makes an older version of an index on disk the newest; the versions between stay.

        Raises:
            UserError: there is no such version, or another process writes.
        """
        store = self._on_disk("restore")
        with store.table.locked():
            maintenance.restore(store, number)

    def export(self, path: str | Path) -> int:
        """Writes the rows of an index on disk as .parquet, with the vectors, or .csv, without. Returns their number.

        Raises:
            UserError: the index is not on disk, or the file cannot be written.
        """
        return maintenance.export(self._on_disk("export"), Path(path))

    @staticmethod
    def _calibrate_again(store: LanceStore) -> None:
        """Fits `match` again if it was fitted to another number of images; it is missing if it cannot be fitted any more."""
        old = store.calibration
        if old is None or abs(len(store) - old["images"]) <= STALE * old["images"]:
            return
        try:
            store.set_calibration(asdict(fit(store)))
        except UserError as error:
            store.set_calibration(None)
            logger.warning(f"{store.table.place}: {error}")

    def _on_disk(self, verb: str) -> LanceStore:
        if not isinstance(self.store, LanceStore):
            raise UserError(
                f"{verb} needs an index on disk; make one by `mmcl index build`, or from index.json by `mmcl index import`"
            )
        return self.store

    def _forget(self) -> None:
        if isinstance(self.store, LanceStore):
            self.store.forget_if_changed()
