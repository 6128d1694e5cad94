"""Files are whole or not there: after an error, after a power cut; text is UTF-8 whatever the machine says."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from power_cut import Disk

from cond_pipelines import files
from cond_pipelines.errors import read_json, read_text


@pytest.fixture()
def disk(tmp_path):
    """An ext4 file system whose power can be cut."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting a file system needs root and mkfs.ext4")
    try:
        disk = Disk(tmp_path, size_mb=16)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine mounts no file: {error}")
    yield disk
    disk.close()


def fill(folder):
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep/data").write_bytes(b"x" * 10_000)
    (folder / "more").write_text("more")


def test_what_was_written_is_there_after_a_power_cut(disk):
    """And a rename without fsync is not: so the cut is a real one."""
    folder = disk.folder
    with files.whole_folder(folder / "made") as unfinished:
        fill(unfinished)
    files.write_json(folder / "facts.json", {"text": "日本語"})
    files.save_array(folder / "array.npy", np.arange(1000))
    (folder / "plain.unfinished").write_text("plain")
    (folder / "plain.unfinished").rename(folder / "plain")
    disk.cut_power()
    assert (folder / "made/deep/data").read_bytes() == b"x" * 10_000 and (folder / "made/more").read_text() == "more"
    assert files.read_json(folder / "facts.json") == {"text": "日本語"}
    assert np.array_equal(files.load_array(folder / "array.npy"), np.arange(1000))
    assert not (folder / "plain").exists() or (folder / "plain").read_bytes() == b""


def test_at_every_instant_the_old_or_the_new_is_there(disk, monkeypatch):
    """The power is cut before and after each call that brings something to the disk, or gives a name."""
    folder, copies = disk.folder, []
    with files.whole_folder(folder / "made") as unfinished:
        fill(unfinished)
    files.write_text(folder / "text", "old")

    def noted(function):
        def call(*args, **kwargs):
            copies.append(disk.copy(f".{len(copies)}"))
            result = function(*args, **kwargs)
            copies.append(disk.copy(f".{len(copies)}"))
            return result

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "rename"):
            patched.setattr(os, name, noted(getattr(os, name)))
        files.write_text(folder / "text", "new, and longer")
        with files.whole_folder(folder / "second") as unfinished:
            fill(unfinished)
        files.remove_folder(folder / "made")
    assert len(copies) > 15
    seen = set()
    for copy in copies:
        disk.cut_power(copy)
        text, second, made = ((folder / name) for name in ("text", "second", "made"))
        seen.add((text.read_text(), second.exists(), made.exists()))
        for whole in (second, made):
            if whole.exists():
                assert (whole / "deep/data").read_bytes() == b"x" * 10_000
                assert (whole / "more").read_text() == "more"
    assert {text for text, _, _ in seen} == {"old", "new, and longer"}
    assert {second for _, second, _ in seen} == {True, False}
    assert all(second or made for _, second, made in seen)  # the old one goes when the new one is on the disk


def test_an_error_leaves_what_was_there(tmp_path):
    files.write_text(tmp_path / "text", "old")
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "text") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    with files.whole_folder(tmp_path / "folder") as unfinished:
        fill(unfinished)
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "folder") as unfinished:
        raise RuntimeError
    assert (tmp_path / "text").read_text() == "old" and (tmp_path / "folder/more").read_text() == "more"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "text"]


def test_text(tmp_path):
    """Any text, also a file's name that is not UTF-8, and what an editor put in front."""
    for text in ("日本語 🎨 ä\r\n", "a name \udce9 of bytes"):
        files.write_json(tmp_path / "text", {"text": text})
        assert read_json(tmp_path / "text") == {"text": text}
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "bom") == {}
    (tmp_path / "latin").write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin is not UTF-8 text \(byte 0\)"):
        read_text(tmp_path / "latin")


def test_every_bit_of_checked_json_counts(tmp_path):
    path = tmp_path / "facts.json"
    files.write_checked_json(path, {"a": {"b": "c", "n": 1.5}, "n": -1})
    good = path.read_bytes()
    assert files.read_checked_json(path, ("a", "n")) == {"a": {"b": "c", "n": 1.5}, "n": -1}
    odd = [b"", bytes(len(good)), b"null", b"[]", b"[" * 100_000, b"1", b'"a"', good[:-9], good * 2]
    for position in range(8 * (len(good) - 1)):  # the last is a line's end, which may be anything blank
        content = bytearray(good)
        content[position // 8] ^= 1 << position % 8
        odd.append(bytes(content))
    for content in odd:
        path.write_bytes(content)
        with pytest.raises(ValueError):
            files.read_checked_json(path, ("a", "n"))


@pytest.mark.parametrize("damage", ["empty", "zeroed", "half", "last byte", "one bit"])
def test_a_damaged_array_is_noticed(tmp_path, damage):
    path = tmp_path / "a.npy"
    files.save_array(path, np.arange(100))
    assert np.array_equal(np.load(path), np.arange(100))  # anybody reads it
    good = path.read_bytes()
    flipped = good[:500] + bytes([good[500] ^ 8]) + good[501:]
    cut = {"empty": b"", "zeroed": bytes(len(good)), "half": good[: len(good) // 2], "last byte": good[:-1]}
    path.write_bytes(cut.get(damage, flipped))
    with pytest.raises(ValueError, match=r"a\.npy is damaged"):
        files.load_array(path)
    np.save(path, np.arange(3))  # of an earlier version, without a checksum
    assert np.array_equal(files.load_array(path), np.arange(3))
