"""Folders of images as people have them: captions, splits, links, names, broken files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from archives import tar_bytes
from PIL import Image

from dixit.common import DixitError
from dixit.config import DataConfig
from dixit.data.images import fingerprint, load, pixels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def paint(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i * 7 % 256, 40, 200)).save(path)


def photos(root: Path, count: int = 6, folder: str = "train") -> list[Path]:
    found = [root / folder / f"p{i}.png" for i in range(count)]
    paint(*found)
    return found


def of(root: Path, **keys: object) -> DataConfig:
    return DataConfig(name="folder", path=str(root), image_size=16, train=0, validation=0, test=0, **keys)


def all_rows(data: DataConfig) -> list[dict]:
    rows: list[dict] = []
    for split in ("train", "validation", "test"):
        try:
            rows += list(load(data, split))
        except DixitError as error:
            assert "is empty" in str(error) or "no images in" in str(error)
    return rows


def captions(root: Path, **keys: object) -> list[list[str]]:
    return sorted(row["captions"] for row in all_rows(of(root, **keys)))


def refused(data: DataConfig, *parts: str) -> None:
    with pytest.raises(DixitError) as error:
        load(data, "train")
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


ROWS = [("p0.png", "a cat"), ("p1.png", "a dog"), ("p1.png", "two dogs"), ("p1.png", "a dog"), ("gone.png", "nothing"),
        ("p3.png", "")]


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    table = [{"file_name": name, "text": text} for name, text in rows]
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(table).to_parquet(str(path))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    else:
        path.write_text("file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("folder", ["", "train", "train/sub"])
def test_a_table_beside_the_images_is_read_and_what_is_missing_counted(name, folder, tmp_path, capsys):
    root = tmp_path / "photos"
    photos(root, 4, "train/sub")
    prefix = os.path.relpath(root / "train/sub", root / folder)
    write_table(root / folder / name, [(f"{prefix}/{file}", text) for file, text in ROWS])
    assert captions(root) == [["a cat"], ["a dog", "two dogs"]]
    said = capsys.readouterr().err
    assert "2 of 4 images have no caption and are left out" in said and "p2.png" in said
    assert f"{name}: 1 of 6 rows name no image" in said and "gone.png" in said


def test_lists_columns_splits_and_changes_of_a_table(tmp_path):
    root = tmp_path / "photos"
    photos(root, 3, "")
    rows = [{"filename": f"p{i}.png", "about": [f"one {i}", f"two {i}"], "split": split}
            for i, split in enumerate(("train", "val", "test"))]
    table = tmp_path / "table.json"
    table.write_text(json.dumps(rows))
    data = of(root, captions=str(table), caption_column="about")
    assert [load(data, s)["captions"][:] for s in ("train", "validation", "test")] == [
        [[f"one {i}", f"two {i}"]] for i in range(3)]
    before = load(data, "train")
    rows[0]["about"] = ["another"]
    table.write_text(json.dumps(rows))
    assert load(data, "train")["captions"][:] == [["another"]]
    assert fingerprint(load(data, "train")) != fingerprint(before)
    refused(of(root, captions=str(tmp_path / "none.csv")), "none.csv", "is not a file")
    refused(of(root, captions=str(root / "p0.png")), "p0.png", "no file of captions")
    refused(replace(data, caption_column="colour"), "has no captions", "filename, about, split")


def test_names_in_a_table_may_be_written_in_several_ways(tmp_path):
    root = tmp_path / "photos"
    paint(root / "cats" / "A.JPG", root / "cats" / "b.png", root / "Café.png", root / "dot.png", root / "back.png")
    names = ["cats\\A.jpg", "cats/b.PNG", "Cafe\u0301.png", "./cats/../dot.png", str(root / "back.png")]
    write_table(root / "metadata.jsonl", [(name, f"text {i}") for i, name in enumerate(names)])
    assert captions(root) == [[f"text {i}"] for i in range(5)]


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "C:\\p\\out.png", "a/../../out.png", "..\\out.png"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    photos(tmp_path / "photos", 2, "")
    paint(tmp_path / "out.png")
    write_table(tmp_path / "photos" / "metadata.jsonl", [("p0.png", "fine"), (name, "bad")])
    refused(of(tmp_path / "photos"), "metadata.jsonl", "out.png", "outside of")


@pytest.mark.parametrize(("content", "parts"), [
    ("file_name,text\np0.png,a cat, a dog\n", ["line 2", "3 cells", "quotes"]),
    ("file_name,text\np0.png,\"a cat\n", ["metadata.csv", "not a valid CSV"]),
    ("file_name\np0.png\n", ["has no captions", "data.caption_column"]),
    ("text\na cat\n", ["has no file names", "data.image_column"]),
    ("file_name,text\nq.png,a cat\n", ["no row of", "q.png"]),
    ("", ["metadata.csv", "has no file names"]), ("file_name,text\n", ["no row of"])])
def test_a_table_that_cannot_be_used_is_one_line(content, parts, tmp_path):
    photos(tmp_path / "photos", 2, "")
    (tmp_path / "photos" / "metadata.csv").write_text(content)
    refused(of(tmp_path / "photos"), *parts)


def test_coco_counts_what_is_missing(tmp_path, capsys):
    photos(tmp_path / "images", 3, "")
    tree = {"images": [{"id": i, "file_name": f"p{i}.png"} for i in (0, 1, 7)],
            "annotations": [{"image_id": i, "caption": f"text {i}"} for i in (0, 0, 1, 7, 9)]}
    (tmp_path / "captions.json").write_text(json.dumps(tree))
    assert captions(tmp_path / "images", captions=str(tmp_path / "captions.json")) == [["text 0"], ["text 1"]]
    said = capsys.readouterr().err
    assert "1 of 3 images have no caption" in said and "2 of 4 rows name no image" in said and "p7.png" in said
    for damaged in ({"images": [{"id": 1}], "annotations": []}, {"x": 1}, {"images": 3},
                    {"images": [{"filename": "a"}]},
                    {"images": [{"id": 0, "file_name": "p0.png"}], "annotations": [{"image_id": 0, "bbox": []}]}):
        (tmp_path / "captions.json").write_text(json.dumps(damaged))
        refused(of(tmp_path / "images", captions=str(tmp_path / "captions.json")), "captions.json", "neither COCO")


# --- names as captions ---


def test_names_that_say_nothing_become_the_class_or_are_reported(tmp_path, capsys):
    root = tmp_path / "photos"
    paint(root / "cats" / "IMG_0001.png", root / "cats" / "tabby 2.png", root / "sea_lions" / "2021" / "DSC0003.png")
    assert captions(root) == [["cats"], ["sea lions"], ["tabby"]]
    assert "the names of its folders serve for 2 images" in capsys.readouterr().err
    flat = tmp_path / "flat"
    paint(*(flat / f"IMG_{i:04}.png" for i in range(5)))
    assert captions(flat) == [["IMG"]] * 5  # a game needs none
    said = capsys.readouterr().err
    assert "5 images have names such as IMG_0000.png, which say nothing (1 different captions" in said


def test_some_images_without_a_text_file(tmp_path, capsys):
    root = tmp_path / "photos"
    paint(root / "a.png", root / "IMG_1.png", root / "red ball.png")
    (root / "a.TXT").write_text("a cat")
    assert captions(root) == [["a cat"], ["red ball"]]
    said = capsys.readouterr().err
    assert "1 of 3 images have no caption and are left out" in said and "1 of 3 images have no text file" in said


# --- splits ---


def test_a_class_called_train_is_no_split_if_one_says_so(tmp_path, capsys):
    root = tmp_path / "photos"
    paint(*(root / kind / f"{kind} {i}.png" for kind in ("train", "car", "bus") for i in range(6)))
    refused(of(root), "folder train", "taken for a split", "bus, car", "data.splits=hash")
    assert len(captions(root, splits="hash")) == 18
    paint(root / "test" / "a test.png")
    assert len(load(of(root), "train")) == 6
    said = capsys.readouterr().err
    assert "12 images outside of the folders train, test" in said and "data.splits=hash" in said
    with pytest.raises(DixitError, match="no images in .*validation.*data.splits=hash"):
        load(of(root), "validation")


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_other_names_of_splits(name, tmp_path):
    paint(tmp_path / "train" / "a.png", tmp_path / name / "b.png")
    assert len(load(of(tmp_path), "train")) == len(load(of(tmp_path), "validation")) == 1


def test_a_class_called_val_alone_is_a_class(tmp_path):
    paint(tmp_path / "val" / "a.png", tmp_path / "cats" / "b.png")
    assert len(captions(tmp_path)) == 2


# --- links and paths ---


def test_linked_class_folders_are_read_once_and_loops_end(tmp_path, capsys):
    root = tmp_path / "photos"
    paint(*(root / "dogs" / f"dog {i}.png" for i in range(4)))
    paint(*(tmp_path / "disk" / "cats" / f"cat {i}.png" for i in range(4)))
    (root / "cats").symlink_to(tmp_path / "disk" / "cats")
    (tmp_path / "disk" / "cats" / "loop").symlink_to(root)
    (root / "dogs" / "again").symlink_to(tmp_path / "disk" / "cats")
    (root / "up").symlink_to(tmp_path)
    (root / "nowhere").symlink_to(tmp_path / "unplugged")
    (root / "one bird.png").symlink_to(tmp_path / "disk" / "cats" / "cat 0.png")
    assert captions(root) == [["cat"]] * 4 + [["dog"]] * 4 + [["one bird"]]
    said = capsys.readouterr().err
    assert "1 links lead nowhere" in said and "unplugged" not in said and "read already" in said


def test_hub_folders_follow_links(tmp_path):
    paint(*(tmp_path / "photos" / "dogs" / f"{i}.png" for i in range(8)))
    paint(*(tmp_path / "disk" / "cats" / f"{i}.png" for i in range(8)))
    (tmp_path / "photos" / "cats").symlink_to(tmp_path / "disk" / "cats")
    rows = all_rows(replace(of(tmp_path / "photos", caption_column="label"), name="hub"))
    assert sorted(row["captions"] for row in rows) == [["cats"]] * 8 + [["dogs"]] * 8


ODD = ["my [photos] 100%", "a*b", "what?", "it's \"mine\"", "fotografías 写真", "{x}", "100%25", "#1", "a::b", "~x"]


@pytest.mark.parametrize("name", ODD)
def test_odd_characters_in_a_path(name, tmp_path):
    root = tmp_path / name
    photos(root, 2, "")
    write_table(root / "metadata.jsonl", [("p0.png", "one"), ("p1.png", "two")])
    assert captions(root) == [["one"], ["two"]]
    root = tmp_path / f"{name} tar"
    root.mkdir()
    content = (tmp_path / name / "p0.png").read_bytes()
    (root / "0.tar").write_bytes(tar_bytes({"a.png": content, "a.txt": b"one", "b.png": content, "b.txt": b"two"}, "w"))
    assert sorted(row["captions"] for row in all_rows(replace(of(root), name="hub"))) == [["one"], ["two"]]


# --- broken images ---


def break_some(files: list[Path]) -> None:
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:50])
    files[2].write_text("no image")


def test_broken_images_are_refused_or_skipped(tmp_path, capsys):
    files = photos(tmp_path / "photos", 12)
    whole = load(of(tmp_path / "photos"), "train")
    break_some(files)
    refused(of(tmp_path / "photos"), "p0.png", "the file is empty")
    data = of(tmp_path / "photos", broken="skip")
    rest = load(data, "train")
    assert rest["concept"][:] == sorted(rest["concept"]) and len(rest) == 9
    kept = [i for i, path in enumerate(sorted(files)) if path not in files[:3]]
    assert (pixels(rest) == pixels(whole, kept)).all()
    said = capsys.readouterr().err
    assert "3 of 12 images cannot be read and are left out" in said and "p0.png" in said
    assert fingerprint(load(data, "train")) == fingerprint(rest)
    assert len(load(replace(data, train=6), "train")) == 6 - sum(
        i not in kept for i in subset(12, 6))  # drawn before, so that a broken file moves no other
    for path in files:
        path.write_bytes(b"")
    refused(data, "none of the 12 images can be read")


def subset(count: int, limit: int) -> list[int]:
    from dixit.common import rng

    return rng("subset", 0, "train").permutation(count)[:limit].tolist()


def test_broken_images_of_a_hub_data_set(tmp_path):
    files = photos(tmp_path / "images", 30, "")
    break_some(files)
    content = {}
    for i, path in enumerate(files):
        content |= {f"{i:03}.png": path.read_bytes(), f"{i:03}.txt": b"a colour"}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(tar_bytes(content, "w"))
    data = replace(of(tmp_path / "shards", broken="skip"), name="hub")
    assert len(all_rows(data)) == 27


def test_a_killed_build_leaves_no_scratch_folder_after_the_next(tmp_path, cache):
    photos(tmp_path / "photos", 3)
    code = ("import sys, time; from pathlib import Path; from dixit.common import scratch\n"
            "with scratch(Path(sys.argv[1])) as folder:\n    print(folder, flush=True); time.sleep(60)")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(cache / "data")], stdout=subprocess.PIPE, text=True)
                 for _ in range(2)]
    try:
        dead, living = (Path(process.stdout.readline().strip()) for process in processes)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert dead.is_dir()
        load(of(tmp_path / "photos"), "train")
        assert list((cache / "data").glob(".tmp-*")) == [living]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


# --- what is left out is counted, what is ambiguous is refused ---

def test_images_of_kinds_that_are_not_read_are_counted(tmp_path, capsys):
    photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "train" / "IMG_1.HEIC").write_bytes(b"any")
    load(of(tmp_path / "photos"), "train")
    assert "1 images are of kinds that are not read" in capsys.readouterr().err
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.avif").write_bytes(b"any")
    refused(of(tmp_path / "phone"), "no images in", "1 are of kinds that are not read", "a.avif")


@pytest.mark.parametrize("name", ["captions.csv", "captions.txt", "annotations.json", "labels.tsv"])
def test_a_file_of_captions_that_is_not_read_is_named(name, tmp_path, capsys):
    photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / name).write_text("file_name,text\ntrain/p0.png,a cat\n")
    load(of(tmp_path / "photos"), "train")
    found = capsys.readouterr().err
    assert f"1 files that may hold captions are not read: {tmp_path / 'photos' / name}" in found
    assert "data.captions" in found


@pytest.mark.parametrize("odd", ["", "tset"])
def test_a_split_that_only_some_rows_name_is_refused(odd, tmp_path):
    photos(tmp_path, 3, "im")
    rows = ["file_name,text,split", "im/p0.png,a,train", "im/p1.png,b,val", f"im/p2.png,c,{odd}"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    refused(of(tmp_path), "column split", f"'{odd}' in others", "data.splits=hash")
    assert len(all_rows(of(tmp_path, splits="hash"))) == 3


def test_two_columns_of_one_name_are_refused(tmp_path):
    photos(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text("file_name,text,text\ntrain/p0.png,one,two\n")
    refused(of(tmp_path), "has two columns 'text'")


@pytest.mark.parametrize("name", [None, 7])
@pytest.mark.parametrize("kind", ["coco", "karpathy"])
def test_an_image_without_a_name_in_json_is_counted(kind, name, tmp_path, capsys):
    photos(tmp_path, 1)
    names = [name, "train/p0.png"]
    tree = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
            "annotations": [{"image_id": i, "caption": "a cat"} for i in range(2)]} if kind == "coco" else {
        "images": [{"filename": n, "split": "train", "sentences": [{"raw": "a cat"}]} for n in names]}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert captions(tmp_path, captions=str(tmp_path / "a.json")) == [["a cat"]]
    assert "1 of 2 rows name no image" in capsys.readouterr().err
