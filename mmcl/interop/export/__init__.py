"""Export of models in the formats of other libraries, each checked with the library's own loader.

A target is a class derived from `ExportTarget` (target.py), in one module per format; `export` (exporting.py) runs it.
"""

from __future__ import annotations

from mmcl.registry import Registry

EXPORTS = Registry(
    "export target",
    {
        "own": "mmcl.interop.export.own:OwnExport",
        "transformers": "mmcl.interop.export.transformers:TransformersExport",
        "open_clip": "mmcl.interop.export.open_clip:OpenClipExport",
        "sentence_transformers": "mmcl.interop.export.sentence_transformers:SentenceTransformersExport",
        "onnx": "mmcl.interop.export.onnx:OnnxExport",
        "pt2": "mmcl.interop.export.pt2:Pt2Export",
    },
)
