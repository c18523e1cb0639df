"""Reading parallel text, good and bad."""

import gzip

import pytest

from composer_ls.errors import DataNotFoundError, TextError
from composer_ls.lab.tasks.translation.data import Pairs, doubts, read_lines, read_pairs


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)


def test_line_n_stands_beside_line_n_compressed_or_not(tmp_path):
    write(tmp_path, train_en=b"a dog\na cat\n", train_de_gz=gzip.compress("ein Hund\neine Mütze".encode()))
    pairs = read_pairs(tmp_path, "train", "en", "de")
    assert list(zip(pairs.source, pairs.target, strict=True)) == [("a dog", "ein Hund"), ("a cat", "eine Mütze")]


def test_only_a_line_feed_ends_a_line(tmp_path):
    write(tmp_path, train_en="one\u2028still one\u0085\r\n\ntwo\n".encode())
    assert read_lines(tmp_path / "train.en") == ["one\u2028still one\u0085", "", "two"]


def test_different_numbers_of_lines_are_told_with_both_numbers(tmp_path):
    write(tmp_path, train_en=b"a\nb\nc\n", train_de=b"a\nb\n")
    with pytest.raises(TextError, match=r"train.en has 3 lines, but .*train.de has 2"):
        read_pairs(tmp_path, "train", "en", "de")


def test_what_is_not_utf8_is_told_with_file_line_and_byte(tmp_path):
    write(tmp_path, train_de="gut\nMütze\n".encode("latin-1"))
    with pytest.raises(TextError, match=r"train.de, line 2: byte 2 \(0xfc\) is not UTF-8: convert"):
        read_lines(tmp_path / "train.de")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    write(tmp_path, train_de=content)
    with pytest.raises(TextError, match="train.de is empty"):
        read_lines(tmp_path / "train.de")


def test_a_broken_archive_is_refused(tmp_path):
    write(tmp_path, train_de_gz=gzip.compress(b"some lines\n" * 100)[:-20])
    with pytest.raises(TextError, match="train.de.gz cannot be read"):
        read_lines(tmp_path / "train.de.gz")


def test_a_missing_file_is_told_with_the_folder(tmp_path):
    write(tmp_path, train_en=b"a\n")
    with pytest.raises(DataNotFoundError, match=rf"neither train.de nor train.de.gz in {tmp_path}: set data.root=DIR"):
        read_pairs(tmp_path, "train", "en", "de")


def test_pairs_without_one_side_and_pairs_learnt_before_are_told_with_their_lines():
    train = Pairs(["a dog", "a cat", ""], ["ein Hund", " ", ""], "train")
    assert doubts(train, [Pairs(["a dog", "a cow"], ["ein Tier", "eine Kuh"], "new")]) == [
        "train: 1 of 3 pairs have one empty side (line 2)"
    ]
    assert doubts(train.first(1), [train]) == [
        "train: 1 of 3 pairs have one empty side (line 2)",
        "train: 1 of 3 pairs are in train too (line 1)",
    ]
