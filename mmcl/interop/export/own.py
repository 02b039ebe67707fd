"""mmcl's own format, with the weights as they are used and without the run around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.encoders.tower import GIVEN
from mmcl.interop.export.target import ExportTarget, LoadedExport, LoadedModel
from mmcl.interop.load import load_model


class OwnExport(ExportTarget):
    """The folder of `mmcl.load_model`, without a run: any model that mmcl trains."""

    loads_from_hub = True
    own_preprocessing = True

    def write(self, folder: Path) -> Sequence[str]:
        """Writes `save_model`'s files; of the origin, what does not name places of this machine."""
        self.model.save(folder, provenance={"fingerprint": self.model.fingerprint})
        return ()

    def load(self, folder: Path) -> LoadedExport:
        """Loads the folder, with the modules that were given from Python."""
        given = {name: tower.encoder.module for name, tower in self.model.towers.items() if tower.spec.encoder == GIVEN}  # type: ignore[union-attr]
        return LoadedModel(load_model(folder, device="cpu", towers=given or None))  # type: ignore[arg-type]

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        return usage_by_mmcl(f"hf:{place}" if on_hub else place)


def usage_by_mmcl(name: str) -> str:
    """Returns the lines of Python that load a model by its name for `load_model`."""
    return f'import mmcl\n\nmodel = mmcl.load_model("{name}")\nmodel.encode_image(["cat.png"]), model.encode_text(["a cat"])'
