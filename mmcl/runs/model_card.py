"""Model cards for the Hugging Face hub (Mitchell et al., "Model Cards for Model Reporting", 2019): what a model is, what it was
trained from and on, how well it works beside its baselines, and how it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

import mmcl
from mmcl.errors import UserError
from mmcl.evaluate import Report
from mmcl.evaluate.reporting.metric import BASELINES, Metric, quoted
from mmcl.evaluate.reporting.tables import BRACKETS, escaped_markdown, markdown_table, metric_tables
from mmcl.files.redaction import redacted
from mmcl.interop.catalog import catalog
from mmcl.interop.export.exporting import ExportReport
from mmcl.interop.export.own import usage_by_mmcl
from mmcl.interop.export.target import REPOSITORY
from mmcl.interop.model import Model
from mmcl.terminal import printable_line

_TASKS = {"retrieval": "image-text retrieval", "zero_shot": "zero-shot-image-classification", "knn": "image-classification"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_BUNDLED = {
    "emoji": "the emoji that come with mmcl: Noto (Apache 2.0), Twemoji (CC BY 4.0), Fluent (MIT) and OpenMoji (CC BY-SA 4.0, "
    "which asks that what is derived from it is shared alike), with names of Unicode CLDR"
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CardContent:
    """What a card is made of.

    Attributes:
        repository: its name on the hub, "USER/NAME", or NAME alone.
        model: the model.
        license: identifier on the hub, such as "apache-2.0".
        report: its evaluation; empty if there is none.
        exports: what is in the folder of the card.
        folder: this folder; None if there are no exports.
    """

    repository: str
    model: Model
    license: str
    report: Report
    exports: Sequence[ExportReport] = ()
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Heading of the card."""
        return self.repository.rpartition("/")[2]


def check_license(name: str) -> None:
    """Raises UserError unless a license looks like an identifier of the hub."""
    if not _LICENSE.fullmatch(name):
        raise UserError(f"--license {name!r}: give an identifier of the hub, such as apache-2.0, cc-by-sa-4.0 or other")


def model_card(content: CardContent) -> str:
    """Returns a README.md: facts for the hub, and text for people. No path and no secret is in it."""
    config = redacted(content.model.provenance.get("config") or {})
    sections = {
        "": [_about(content.model)],
        "Use": [*_use(content)],
        "Training": [*_training(content.model, config)],
        "Results": [*_results(content.report)],
        "Limits": [*_limits(content)],
        "Export": [*_parity(content.exports)],
        "Reproduction": [*_reproduction(content.model, config)],
    }
    parts = [f"---\n{_facts(content, config).to_yaml()}\n---", f"# {content.name}"]
    for heading, paragraphs in sections.items():
        if paragraphs:
            parts += [f"## {heading}"] if heading else []
            parts += paragraphs
    return "\n\n".join(parts) + "\n"


def _facts(content: CardContent, config: Mapping[str, Any]) -> ModelCardData:
    model, base = content.model, _base_model(content.model.provenance)
    relation = "quantized" if any(report.precision == "int8" for report in content.exports) else "finetune"
    dual = model.has_image and model.has_text
    return ModelCardData(
        license=content.license,
        library_name=_library(content),
        pipeline_tag="zero-shot-image-classification" if dual else None,
        tags=["mmcl", *(["clip"] if dual else []), *(report.target for report in content.exports if report.target != "own")],
        base_model=base,
        base_model_relation=None if base is None else relation,
        model_name=content.name,
        eval_results=[*map(_eval_result, _trained(content.report))] or None,
    )


def _library(content: CardContent) -> str:
    libraries = {"transformers": "transformers", "open_clip": "open_clip", "sentence_transformers": "sentence-transformers"}
    return libraries.get(content.exports[0].target, "mmcl") if content.exports else "mmcl"


def _trained(report: Report) -> list[Metric]:
    """The commonly quoted metrics of the model itself."""
    own = [metric for metric in report.metrics if metric.model not in BASELINES and metric.value is not None]
    return quoted(own)


def _eval_result(metric: Metric) -> EvalResult:
    return EvalResult(
        task_type=_TASKS.get(metric.evaluator, metric.evaluator),
        dataset_type=metric.data or metric.evaluator,  # by which the hub tells results apart
        dataset_name=metric.data or metric.evaluator,
        metric_type=metric.metric,
        metric_value=round(float(metric.value or 0), 4),
        metric_name=metric.metric,
    )


def _base_model(provenance: Mapping[str, Any]) -> str | None:
    """Name on the hub of the model that the training started from; None if it has none."""
    start = str((provenance.get("config") or {}).get("init") or provenance.get("source") or "")
    scheme, _, rest = start.partition(":")
    if scheme == "hf" and re.fullmatch(r"[\w.-]+/[\w.-]+", rest) and not Path(rest).exists():
        return rest
    if rest.startswith("hf-hub:"):
        return rest.removeprefix("hf-hub:")
    released = {name: facts.get("hub") for models in catalog().values() for name, facts in models.items()}
    return released.get(start)


def _about(model: Model) -> str:
    towers = " and ".join(f"{name}s by `{tower.encoder_name}`" for name, tower in model.towers.items())
    size = sum(parameter.numel() for parameter in model.towers.parameters()) / 1e6
    return (
        f"Embeds {towers} in {model.embed_dim} numbers of unit length, whose products are similarities; {size:.1f} million "
        "parameters. Trained with mmcl."
    )


def _use(content: CardContent) -> Iterator[str]:
    if not content.exports:
        source = f"hf:{content.repository}" if "/" in content.repository else content.name
        yield f"```python\n{usage_by_mmcl(source)}\n```"
    for report in content.exports:
        assert content.folder is not None
        inside = report.folder.relative_to(content.folder)
        if inside == Path() and report.usage_on_hub:
            yield f"**{report.target}**\n\n```python\n{report.usage_on_hub.replace(REPOSITORY, content.repository)}\n```"
        else:
            copy, place = f"hf download {content.repository} --local-dir {content.name}", Path(content.name, inside)
            usage = report.usage.replace(str(report.folder), str(place))
            yield f"**{report.target}**, in a copy (`{copy}`)\n\n```python\n{usage}\n```"


def _training(model: Model, config: Mapping[str, Any]) -> Iterator[str]:
    start = config.get("init") or redacted(model.provenance.get("source"))
    if start:
        yield f"From: {_code(start)}, whose license applies too."
    data = config.get("data") or {}
    sources = [*(data.get("mix") or {"": data.get("train")}).values()] if data else []
    if sources:
        yield "On: " + "; ".join(map(_data_in_words, sources)) + "."
    elif not start:
        yield "What it was trained on is not recorded in the model."
    method = (config.get("method") or {}).get("name")
    if method:
        steps = model.provenance.get("steps")
        yield f"By: {_code(method)}" + (f", {steps:,} steps" if isinstance(steps, int) else "") + "."


def _data_in_words(source: Mapping[str, Any]) -> str:
    name, path = str(source.get("name")), source.get("path")
    if name in _BUNDLED:
        return _BUNDLED[name]
    return _code(path) if name == "auto" else _code(name) + (f" of {_code(path)}" if path else "")


def _code(name: Any) -> str:
    """A name in a span of code, which no character of it can end."""
    return f"`{printable_line(str(name).replace('`', '´'))}`"


def _results(report: Report) -> Iterator[str]:
    if not report.metrics:
        yield "Not evaluated: nothing is known of how well it works."
        return
    yield from map(escaped_markdown, report.verdict())
    for heading, header, rows in metric_tables(quoted(report.metrics)):
        yield f"**{escaped_markdown(heading)}**\n\n{markdown_table(header, rows)}"
    yield BRACKETS
    if any(metric.model == "before" for metric in report.metrics):
        yield '"before" is the model that the training started from: what was gained, and on other data what was lost.'


def _limits(content: CardContent) -> Iterator[str]:
    model = content.model
    lines = [
        "What it has not seen in training, it may embed anywhere: a similarity is no probability, and some text is always the "
        "nearest. It takes over what is one-sided in its data. Do not use it to judge people."
    ]
    if not content.report.metrics:
        lines.append("Nothing was measured, so measure on your own data first.")
    if model.has_image:
        shown = model.preprocess
        lines.append(
            f"Images are seen with {shown.height} x {shown.width} pixels (resize {shown.resize!r}, {shown.interpolation}), so "
            "what is smaller than a few pixels then is not seen."
        )
    if model.has_text:
        lines.append(f"Texts are cut off after {model.tokenizer.context_length} tokens.")
    yield "\n".join(f"- {line}" for line in lines)


def _parity(reports: Sequence[ExportReport]) -> Iterator[str]:
    if not reports:
        return
    rows = [
        [
            report.target,
            report.precision,
            f"{max(report.parity.tensor.values()):.1g}",
            f"{max(report.parity.end_to_end.values()):.1g}",
            f"{report.megabytes:.1f}",
        ]
        for report in reports
    ]
    yield "Largest difference of any number of an embedding from the trained model, as the library itself loads it."
    yield markdown_table(["format", "precision", "same pixels and tokens", "images and texts end to end", "MB"], rows)
    lost = [f"- {report.target}: {line}" for report in reports for line in report.lost]
    if lost:
        yield "\n".join(lost)


def _reproduction(model: Model, config: Mapping[str, Any]) -> Iterator[str]:
    yield f"mmcl {mmcl.__version__}, fingerprint `{model.fingerprint}`."
    if config:
        settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
        yield f"`mmcl train config.yaml` with these settings (paths are names only):\n\n```yaml\n{settings.strip()}\n```"
