"""One contract for every data source, and the properties of each."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mmcl.data import SOURCES
from mmcl.data.batches.loader import StepBatches
from mmcl.data.derived.subset import Subset, split_source
from mmcl.data.open import guess_source, open_source
from mmcl.errors import UserError
from mmcl.testing import check_source
from tests.data.embeddings import PAIR_COLUMNS, pairs_file
from tests.data.files import decoded, write_image, write_mnist, write_table
from tests.data.tars import pairs, write_tar
from tests.data.test_loader import batches
from tests.data.test_loader import rows as rows_of
from tests.narrow import of_type, present

Given = tuple[str, str | None, str | None, dict[str, Any]]

TINY = Path(__file__).parents[1] / "fixtures" / "emoji_tiny"


@pytest.fixture
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Given:
    """The positional and keyword arguments with which each registered source is opened."""
    name = request.param
    if name in ("folder", "table"):
        return name, str(request.getfixturevalue(name)), None, {}
    if name == "webdataset":
        for number in range(3):
            write_tar(tmp_path / "shards" / f"{number}.tar", pairs(4 * number, 4 * number + 4))
        return name, str(tmp_path / "shards"), str(tmp_path), {}
    if name == "huggingface":
        return name, str(TINY), str(tmp_path), {}
    if name == "embeddings":
        return name, str(pairs_file(tmp_path)), str(tmp_path), PAIR_COLUMNS
    if name == "torchvision":
        write_mnist(tmp_path / "mnist" / "MNIST" / "raw")
        return name, None, str(tmp_path), {"dataset": "MNIST", "train": False}
    return name, None, None, {}


every_source = pytest.mark.parametrize("given", list(SOURCES), indirect=True)


class TestContract:
    @every_source
    def test_contract(self, given: Given) -> None:
        check_source(lambda: open_source(*given))

    @every_source
    def test_labels_are_those_of_the_samples(self, given: Given) -> None:
        source = open_source(*given)
        rows = np.arange(len(source))[::-3]
        for labels, numbers in ((source.labels, range(len(source))), (Subset(source, rows).labels, rows)):
            expected = [source[int(index)].label for index in numbers]
            assert (labels is None) == all(label is None for label in expected)
            assert labels is None or labels.dtype == np.int64
            assert labels is None or labels.tolist() == [-1 if label is None else label for label in expected]

    @every_source
    def test_the_same_batches_for_any_workers_and_processes(self, given: Given) -> None:
        source = open_source(*given)
        sample = source[0]
        kinds = {"image": "image"} if sample.image is not None or sample.row is not None else {}
        kinds |= {"text": "text"} if sample.captions else {}

        def made(rank: int = 0, world: int = 1) -> StepBatches:
            return batches(
                source, min(6, len(source) // 6 * 6 or len(source)), views=kinds, cache=False, rank=rank, world=world
            )

        whole = made()
        expected = [rows_of(whole[step]) for step in range(3)]
        for workers in (1, 2):
            loader = DataLoader(whole, sampler=range(3), batch_size=None, num_workers=workers)
            assert [rows_of(batch) for batch in loader] == expected
        for world in (2, 3):
            if len(expected[0]) % world == 0:
                ranks = [made(rank, world) for rank in range(world)]
                assert [[row for part in ranks for row in rows_of(part[step])] for step in range(3)] == expected

    @every_source
    def test_a_path_too_many_or_too_few(self, given: Given) -> None:
        name, path, root, args = given
        with pytest.raises(UserError, match="reads no path" if path is None else "needs a path"):
            open_source(name, None if path else "somewhere", root, args)

    @every_source
    def test_an_unknown_argument(self, given: Given) -> None:
        name, path, root, args = given
        with pytest.raises(UserError, match=r"data\.train: unknown argument"):
            open_source(name, path, root, args | {"color": 1}, where="data.train")

    @every_source
    def test_a_part_is_those_rows(self, given: Given) -> None:
        source = open_source(*given)
        rows = np.array([len(source) - 1, 0])
        part = Subset(source, rows)
        assert [part[i].name for i in range(len(part))] == [source[row].name for row in rows]
        assert [part.caption(i, 0.2) for i in range(2)] == [source.caption(row, 0.2) for row in rows]
        assert (part.class_names, part.templates) == (source.class_names, source.templates)
        assert part.fingerprint not in (source.fingerprint, Subset(source, rows[::-1]).fingerprint)
        assert (part.ids is None) == (source.ids is None)
        if source.ids is not None:
            assert present(part.ids).tolist() == source.ids[rows].tolist()


class TestSplit:
    def test_both_parts_are_the_whole_and_share_no_group(self) -> None:
        source = open_source("emoji", None, None, {"fold": "all"})
        rest, held_out = split_source(source, 0.2, seed=0)
        assert sorted([*rest.indices, *held_out.indices]) == list(range(len(source)))
        assert not set(present(rest.ids).tolist()) & set(present(held_out.ids).tolist())
        assert len(held_out) == pytest.approx(0.2 * len(source), rel=0.1)
        again, other = split_source(source, 0.2, seed=0)[1], split_source(source, 0.2, seed=1)[1]
        assert again.indices.tolist() == held_out.indices.tolist() != other.indices.tolist()

    def test_equal_captions_stay_together(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text("image,caption\n" + "".join(f"{i}.png,caption {i // 4}\n" for i in range(200)))
        rest, held_out = split_source(open_source("table", str(path)), 0.5, seed=0)
        sides = [{part[i].captions[0] for i in range(len(part))} for part in (rest, held_out)]
        assert not sides[0] & sides[1]
        assert len(sides[0] | sides[1]) == 50

    def test_groups_of_many_samples_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_table(tmp_path / "a.csv", [{"image": f"{n}.png", "caption": f"c{n // 2}"} for n in range(40)])
        source, cache = open_source("table", str(tmp_path / "a.csv")), tmp_path / "index"
        plain = split_source(source, 0.5, seed=1)
        monkeypatch.setattr("mmcl.data.derived.subset.MANY", 1)
        first = split_source(source, 0.5, seed=1, cache=cache)
        for share, seed in ((0.5, 2), (0.25, 1)):
            others = split_source(source, share, seed), split_source(source, share, seed, cache=cache)
            assert others[0][1].indices.tolist() == others[1][1].indices.tolist()
        monkeypatch.setattr("mmcl.data.derived.subset.text_groups", lambda source: pytest.fail("made again"))
        again = split_source(source, 0.5, seed=1, cache=cache)
        for parts in (first, again):
            assert [part.indices.tolist() for part in parts] == [part.indices.tolist() for part in plain]
        (cache.parent / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            split_source(source, 0.5, seed=1, cache=tmp_path / "file")

    @pytest.mark.parametrize(
        ("count", "share", "held"), [(37, 0.1, 4), (6, 0.1, 1), (2, 0.9, 1), (1000, 0.05, 50), (7, 0.5, 4)]
    )
    def test_the_share_is_exact(self, tmp_path: Path, count: int, share: float, held: int) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text("image,caption\n" + "".join(f"{i}.png,caption {i}\n" for i in range(count)))
        for seed in range(3):
            rest, held_out = split_source(open_source("table", str(path)), share, seed)
            assert (len(rest), len(held_out)) == (count - held, held)
            assert not any("held out" in line for line in rest.warnings)

    @pytest.mark.parametrize(("size", "share", "held"), [(4, 0.1, 4), (10, 0.42, 20), (10, 0.38, 10), (20, 0.1, 20)])
    def test_groups_come_as_near_as_they_can_with_a_warning(self, tmp_path: Path, size: int, share: float, held: int) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text("image,caption\n" + "".join(f"{i}.png,caption {i // size}\n" for i in range(40)))
        rest, held_out = split_source(open_source("table", str(path)), share, seed=0)
        assert len(held_out) == held
        said = [line for line in rest.warnings if f"and {held} are held out" in line]
        assert len(said) == (held != round(share * 40))

    def test_more_data_move_few_samples_across(self, tmp_path: Path) -> None:
        sides = []
        for count in (1000, 1100):
            path = tmp_path / f"{count}.csv"
            path.write_text("image,caption\n" + "".join(f"{i}.png,caption {i}\n" for i in range(count)))
            sides.append(set(split_source(open_source("table", str(path)), 0.2, seed=0)[1].indices.tolist()))
        assert len(sides[0] - sides[1]) < 0.1 * len(sides[0])

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_a_share_that_leaves_nothing(self, share: float) -> None:
        with pytest.raises(UserError, match="leaves an empty part"):
            split_source(open_source("digits"), share, 0)


class TestAuto:
    def test_by_what_lies_there(self, folder: Path, table: Path, tmp_path: Path) -> None:
        assert guess_source(str(folder)) == "folder"
        assert guess_source(str(table)) == "table"
        assert guess_source(str(TINY)) == "huggingface"
        assert guess_source(str(TINY / "noto.parquet")) == "table"
        assert len(open_source("auto", str(folder))) == 3

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([], "is empty"),
            (["a.txt", "b.docx"], r"only 1 \.txt \(a\.txt\), 1 \.docx"),
            ([".hidden.png"], "only hidden files in it"),
        ],
    )
    def test_nothing_to_read(self, files: list[str], message: str, tmp_path: Path) -> None:
        for name in files:
            (tmp_path / name).write_text("")
        with pytest.raises(UserError, match=message):
            guess_source(str(tmp_path))

    def test_missing_files_and_invalid_paths(self, tmp_path: Path) -> None:
        (tmp_path / "data.xlsx").write_text("")
        with pytest.raises(UserError, match=r"data\.xlsx: is not a readable table.* save it as \.csv"):
            guess_source(str(tmp_path / "data.xlsx"))
        with pytest.raises(UserError, match="no such file or folder"):
            guess_source(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="needs a path"):
            open_source("auto")
        with pytest.raises(UserError, match="did you mean 'folder'"):
            open_source("foldr")


class TestFolder:
    def test_text_beside_the_image(self, folder: Path) -> None:
        source = open_source("folder", str(folder))
        assert [Path(source[i].name).name for i in range(3)] == ["a.png", "b.PNG", "c.jpg"]
        assert source[2].captions == ("a photo of sub/c.jpg", "a second caption")
        assert source.class_names is None, "not all images are in subfolders"

    def test_subfolders_are_labels(self, tmp_path: Path) -> None:
        for name in ("dog/1.png", "dog/more/2.png", "cat/1.png"):
            write_image(tmp_path / name)
        source = open_source("folder", str(tmp_path))
        assert source.class_names == ["cat", "dog"]
        assert [source[i].label for i in range(3)] == [0, 1, 1]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("captions.csv", "file_name,text\na.png,one\nsub/c.jpg,two\na.png,three\n"),
            ("captions.tsv", "file_name\ttext\na.png\tone\nsub/c.jpg\ttwo\na.png\tthree\n"),
            (
                "metadata.jsonl",
                '{"file_name": "a.png", "text": ["one", "three"]}\n\n{"file_name": "sub/c.jpg", "text": "two"}\n',
            ),
        ],
    )
    def test_a_captions_file(self, folder: Path, name: str, content: str) -> None:
        (folder / name).write_text(content)
        source = open_source("folder", str(folder))
        assert [(Path(source[i].name).name, source[i].captions) for i in range(len(source))] == [
            ("a.png", ("one", "three")),
            ("c.jpg", ("two",)),
        ]

    def test_a_captions_file_of_another_name(self, folder: Path) -> None:
        (folder / "mine.csv").write_text("image,caption\na.png,one\n")
        assert len(open_source("folder", str(folder), None, {"captions": "mine.csv"})) == 1
        with pytest.raises(UserError, match=r"no captions file 'yours\.csv'"):
            open_source("folder", str(folder), None, {"captions": "yours.csv"})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "image,caption\nmissing.png,one\ngone.png,two\n",
                r"captions\.csv: none of the images .* the first is missing\.png",
            ),
            ("image,caption\n", "has no rows"),
            ("drawing,words\na.png,1\n", "Its columns are drawing, words"),
            ("", "its first line must name the columns"),
        ],
    )
    def test_a_wrong_captions_file(self, folder: Path, content: str, message: str) -> None:
        (folder / "captions.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            open_source("folder", str(folder))

    def test_two_captions_files(self, folder: Path) -> None:
        for name in ("captions.csv", "metadata.jsonl"):
            (folder / name).write_text("")
        with pytest.raises(UserError, match=r"both captions\.csv and metadata\.jsonl"):
            open_source("folder", str(folder))

    def test_no_image_and_no_folder(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="is empty"):
            open_source("folder", str(tmp_path / "empty"))
        with pytest.raises(UserError, match="choose the data source 'table'"):
            open_source("folder", str(folder / "a.png"))

    def test_what_is_left_out_and_in_which_order_the_rest_comes(self, tmp_path: Path) -> None:
        for name in ("b/1.png", "b.x/2.PNG", "b-c.png", "b/.thumbs/3.png", ".4.png", "b/deep/5.jpeg"):
            write_image(tmp_path / "all" / name)
        (tmp_path / "all" / "linked").symlink_to(tmp_path / "all" / "b")
        (tmp_path / "all" / "folder.png").mkdir()
        (tmp_path / "all" / "lost.png").symlink_to(tmp_path / "gone.png")
        source = open_source("folder", str(tmp_path / "all"))
        names = [str(Path(source[i].name).relative_to(tmp_path / "all")) for i in range(len(source))]
        assert names == ["b/1.png", "b/deep/5.jpeg", "b-c.png", "b.x/2.PNG", "lost.png"]
        assert source.fingerprint
        assert source.labels is None

    def test_of_many_images_some_sizes_are_looked_at_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, asked = open_source("folder", str(folder)).fingerprint, list[Path]()
        module = "mmcl.data.sources.folders.source"
        original = importlib.import_module(module)._size

        def size(file: Path) -> int | None:
            asked.append(file)
            return of_type(int, original(file))

        monkeypatch.setattr(f"{module}._size", size)
        source = open_source("folder", str(folder))
        assert [source.fingerprint for _ in range(3)] == [before] * 3
        assert len(asked) == len(source)
        asked.clear()
        monkeypatch.setattr(f"{module}._ALL_SIZES", len(source) - 1)
        monkeypatch.setattr(f"{module}._SOME_SIZES", 2)
        assert open_source("folder", str(folder)).fingerprint != before
        assert 1 <= len(asked) <= 2 < len(source)

    def test_the_fingerprint_belongs_to_the_content(self, folder: Path, tmp_path: Path) -> None:
        before = open_source("folder", str(folder)).fingerprint
        copy = shutil.copytree(folder, tmp_path / "copy")
        assert open_source("folder", str(copy)).fingerprint == before
        (copy / "a.txt").write_text("another caption")
        assert open_source("folder", str(copy)).fingerprint != before


class TestHuggingFace:
    def test_parquet_files(self, tmp_path: Path) -> None:
        source = open_source("huggingface", str(TINY), str(tmp_path), {"label_column": "subgroup"})
        expected = open_source("table", str(TINY / "fluent.parquet"), None, {"label_column": "subgroup"})
        assert len(source) == 512
        assert source[0].image == expected[0].image
        assert source[0].captions == expected[0].captions
        assert source.class_names == expected.class_names

    def test_saved_to_disk(self, tmp_path: Path) -> None:
        import datasets

        features = datasets.Features(
            {"img": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        columns = {"img": [Image.new("L", (3, 2))] * 2, "text": ["one", "two"], "label": [1, 0]}
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": dataset, "extra": dataset.select([1])}).save_to_disk(tmp_path / "several")
        parts = [
            ("one", {}, ["one", "two"]),
            ("one", {"split": "train[:1]"}, ["one"]),
            ("one", {"split": "train[50%:]"}, ["two"]),
        ]
        parts += [("several", {"split": "extra"}, ["two"]), ("several", {"split": "train[1:]+extra"}, ["two", "two"])]
        for path, args, captions in parts:
            source = open_source("auto", str(tmp_path / path), str(tmp_path), args)
            assert [source[i].captions[0] for i in range(len(source))] == captions
            assert source.class_names == ["cat", "dog"]
            assert source[len(source) - 1].label == ["two", "one"].index(captions[-1])
            assert decoded(source[0]).size == (3, 2)
        with pytest.raises(UserError, match="unknown split 'extre'; did you mean 'extra'"):
            open_source("auto", str(tmp_path / "several"), None, {"split": "extre"})

    def test_what_cannot_be_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="someone/something: cannot be loaded"):
            open_source("huggingface", "someone/something", str(tmp_path))
        with pytest.raises(UserError, match="no column 'words' for `caption_column`; it has image, caption"):
            open_source("huggingface", str(TINY), str(tmp_path), {"caption_column": "words"})


class TestTorchvision:
    @pytest.mark.parametrize("bad", [0, 2])
    def test_a_file_that_cannot_be_read_is_a_bad_sample(self, bad: int, tmp_path: Path) -> None:
        files = [write_image(tmp_path / name) for name in ("cat/1.png", "cat/2.png", "dog/1.png")]
        files[bad].write_bytes(b"no image")
        source = open_source("torchvision", None, str(tmp_path), {"dataset": "ImageFolder"})
        for index in range(3):
            assert (source[index].problem is None) == (index != bad)
        with pytest.raises(UserError, match=f"ImageFolder, row {bad}: cannot be read: cannot identify image file"):
            source[bad].check()
        assert present(source.labels).tolist() == [0, 0, 1], "labels come from the list in memory"

    @pytest.mark.parametrize("place", ["MNIST/raw", "mnist/MNIST/raw"])
    def test_a_copy_is_found(self, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_mnist(tmp_path / place)
        monkeypatch.setenv("MMCL_DATA_ROOT", str(tmp_path))
        train = open_source("torchvision", None, None, {"dataset": "MNIST"})
        test = open_source("torchvision", None, None, {"dataset": "MNIST", "train": False})
        assert np.array_equal(np.asarray(train[1].image), (np.arange(784) + 784).reshape(28, 28) % 256)
        assert test[13].label == 3
        assert train.fingerprint != test.fingerprint

    def test_rows(self, tmp_path: Path) -> None:
        write_mnist(tmp_path / "MNIST" / "raw")
        names = {}
        for rows in ("0:8", "5:", "-3:", ":"):
            source = open_source("torchvision", None, str(tmp_path), {"dataset": "MNIST", "rows": rows})
            names[rows] = [source[i].label for i in range(len(source))]
        assert names == {"0:8": list(range(8)), "5:": [i % 10 for i in range(5, 20)], "-3:": [7, 8, 9], ":": [*range(10)] * 2}
        for rows, message in (("8", "give .start:stop."), ("a:b", "give .start:stop."), ("30:", "leaves none of 20")):
            with pytest.raises(UserError, match=message):
                open_source("torchvision", None, str(tmp_path), {"dataset": "MNIST", "rows": rows})

    def test_any_data_set_of_images(self, tmp_path: Path) -> None:
        source = open_source(
            "torchvision", None, str(tmp_path), {"dataset": "FakeData", "args": {"size": 5, "image_size": [3, 8, 8]}}
        )
        assert len(source) == 5
        assert decoded(source[0]).size == (8, 8)
        assert isinstance(source[0].label, int)

    def test_no_copy_and_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError("the network is down")

        monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
        with pytest.raises(UserError, match=r"MNIST: no copy below the data root .* the network is down"):
            open_source("torchvision", None, str(tmp_path), {"dataset": "MNIST"})

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"dataset": "MNITS"}, "did you mean 'MNIST'"),
            ({"dataset": "MNIST", "split": "test"}, "unknown argument of torchvision.datasets.MNIST"),
            ({}, "needs the argument 'dataset'"),
            ({"dataset": "SVHN", "split": "tset"}, "SVHN: "),
        ],
    )
    def test_wrong_arguments(self, args: dict[str, str], message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            open_source("torchvision", None, str(tmp_path), args)


class TestDigits:
    def test_folds(self) -> None:
        from sklearn.datasets import load_digits

        train, test, everything = (open_source("digits", None, None, {"fold": fold}) for fold in ("train", "test", "all"))
        names = [{source[i].name for i in range(len(source))} for source in (train, test, everything)]
        assert names[0] | names[1] == names[2]
        assert not names[0] & names[1]
        labels = load_digits().target
        for label in range(10):
            held_out = sum(test[i].label == label for i in range(len(test)))
            assert held_out == (labels == label).sum() // 4
        pixels = np.stack([np.asarray(everything[i].image) for i in range(len(everything))])
        assert np.abs(pixels / 255 - load_digits().images / 16).max() <= 0.5 / 255 + 1e-9
        with pytest.raises(UserError, match="did you mean 'train'"):
            open_source("digits", None, None, {"fold": "trian"})
