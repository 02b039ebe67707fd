"""Contract suite for data sources: the properties of every entry of `mmcl.data.SOURCES`, and of your own."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np

from mmcl.data.derived.subset import Subset
from mmcl.data.images.decode import decode
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.testing.require import require

Open = Callable[[], Source]


def check_source(open_again: Open) -> None:
    """Runs every check on a source.

    Args:
        open_again: opens a new instance of the source, with at least two samples.

    Raises:
        AssertionError: a check failed; the message says what is broken.

    Example:
        >>> from mmcl.data.open import open_source
        >>> check_source(lambda: open_source("digits"))
    """
    for check in SOURCE_CHECKS.values():
        check(open_again)


def check_samples(open_again: Open) -> None:
    """Samples have a name of their own, and an image that can be read or a text; labels are numbers of classes."""
    source = open_again()
    require(isinstance(source, Source), f"{type(source).__name__} is not a mmcl.data.source.Source")
    require(len(source) > 1, f"there are {len(source)} samples: test it on two or more")
    for index in sorted({0, len(source) // 2, len(source) - 1}):
        _check_sample(source, index)
    names = [source[index].name for index in range(len(source))]
    require(len(set(names)) == len(names), "two samples have one name; it says which sample a message is about")
    require(all(one.count("{}") == 1 for one in source.templates), f"templates {source.templates}: each has one {{}}")


def _check_sample(source: Source, index: int) -> None:
    sample = source[index]
    require(isinstance(sample, Sample) and bool(sample.name), f"sample {index} is {sample!r}: give a Sample with a name")
    require(sample.image is not None or bool(sample.captions), f"{sample.name} has neither an image nor a caption")
    if sample.image is not None:
        decode(sample.image, name=sample.name)
    texts = (*sample.captions, *sample.positives, *sample.negatives)
    require(all(isinstance(text, str) for text in texts), f"{sample.name}: a text is not a str")
    if sample.label is not None:
        classes = len(source.class_names or ())
        fine = type(sample.label) is int and 0 <= sample.label < (classes or 2**62)
        require(fine, f"{sample.name}: the label {sample.label!r} is not an int from 0 to below {classes}")


def check_end(open_again: Open) -> None:
    """What lies beyond the last sample is an IndexError, which ends a loop over the source."""
    source = open_again()
    try:
        source[len(source)]
    except IndexError:
        return
    raise AssertionError("a sample beyond the last one raises no IndexError")


def check_captions(open_again: Open) -> None:
    """The caption of an epoch is a pure function of its draw, and begins with one of the sample's."""
    source = open_again()
    for draw in (0.0, 0.3, 0.999999):
        caption = source.caption(0, draw)
        require(caption == source.caption(0, draw), "two calls of caption with one draw differ")
        own = source[0].captions or ("",)
        require(any(caption.startswith(text) for text in own), f"{caption!r} is none of the captions {own}")


def check_labels(open_again: Open) -> None:
    """`labels`, `ids` and `groups` are int64 with a row for each sample, -1 for a sample without a label."""
    source = open_again()
    own = [-1 if (label := source[index].label) is None else label for index in range(len(source))]
    if source.labels is None:
        require(set(own) == {-1}, "labels is None, and samples have labels")
    else:
        require(source.labels.dtype == np.int64 and source.labels.tolist() == own, "labels are not those of the samples")
    for name, own_N in (("ids", source.ids), ("groups", source.groups)):
        if own_N is not None:
            require(own_N.dtype == np.int64 and len(own_N) == len(source), f"{name} are not int64, one for each sample")


def check_fingerprint(open_again: Open) -> None:
    """The fingerprint is that of the data: the same when they are opened again, another one for a part of them."""
    source = open_again()
    require(source.fingerprint == open_again().fingerprint, "the fingerprint changes when the same data are opened again")
    part = Subset(source, np.array([len(source) - 1, 0]))
    require([part[0].name, part[1].name] == [source[len(source) - 1].name, source[0].name], "a part has other rows")
    require(part.fingerprint != source.fingerprint, "a part has the fingerprint of the whole")


def check_pickling(open_again: Open) -> None:
    """Checks that a pickled copy, as in a loader process, gives the same samples."""
    source = open_again()
    sent: Source = pickle.loads(pickle.dumps(source))
    require(sent.fingerprint == source.fingerprint, "the fingerprint is another one in another process")
    for index in range(0, len(source), max(1, len(source) // 10)):
        one, other = source[index], sent[index]
        same = (one.name, one.captions, one.label) == (other.name, other.captions, other.label)
        require(same, f"{one.name} is another sample in another process")


SOURCE_CHECKS: dict[str, Callable[[Open], None]] = {
    "samples": check_samples,
    "end": check_end,
    "captions": check_captions,
    "labels": check_labels,
    "fingerprint": check_fingerprint,
    "pickling": check_pickling,
}
"""The checks of `check_source`, by name."""
