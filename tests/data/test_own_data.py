"""Every format in docs/own_data.md loads as the page says: its files are made, and its YAML is read."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from archives import tar_bytes
from PIL import Image

from dixit.common import DixitError
from dixit.config import Config, load_config
from dixit.data.images import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_data.md"
# The captions of each example, in the order of the page.
CAPTIONS = [
    [["a brown dog on a sofa"], ["two palms by the sea", "a beach in the evening"]],
    [["a brown dog on a sofa", "Rex, asleep"], ["two palms by the sea"]],
    [["A child climbs some stairs .", "A girl goes into a wooden building ."], ["Two dogs meet on the road ."]],
    [["A bear in the grass."], ["A room with a fireplace.", "A woman in a kitchen."]],
    [["A box of food.", "Meat and bread in a box."], ["A dog on shoes."], ["A motorbike."]],
    [["cat"], ["tabby cat"], ["zebra"]],
    [["two palms by the sea"], ["two palms by the sea"], ["two palms by the sea"]],
    [["a bus"], ["a car"], ["a train"]],
]


def examples() -> list[tuple[str, dict[str, str], str]]:
    """(listing of files, contents of files by name, YAML) of each example on the page."""
    text = PAGE.read_text(encoding="utf-8")
    text = text[text.index("## Images"):text.index("## Training on your images")]
    found = []
    for part in re.split(r"(?=^```text\n\S+/)", text, flags=re.MULTILINE)[1:]:
        listing, code = (re.search(rf"^```{kind}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)[1]
                         for kind in ("text", "yaml"))
        before = part.split("```yaml")[0]
        files = dict(re.findall(r"^`([^`]+)`:\n\n```\w+\n(.*?)^```", before, re.MULTILINE | re.DOTALL))
        found.append((listing, files, code))
    return found


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), (20 * number, 90, 160)).save(stream, "JPEG")
    return stream.getvalue()


def make(listing: str, files: dict[str, str]) -> None:
    for number, line in enumerate(listing.splitlines()):
        name, _, members = line.partition(": ")
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if members:
            text = next(iter(files.values())).encode()
            content = {m: picture(int(m[:4])) if m.endswith(".jpg") else text for m in members.split()}
            path.write_bytes(tar_bytes(content, "w"))
        else:
            path.write_bytes(files[path.name].encode() if path.suffix != ".jpg" else picture(number))


def config_of(code: str) -> Config:
    Path("run.yaml").write_text("task: caption\n" + code)
    return load_config("run.yaml")


@pytest.mark.parametrize(("example", "captions"), list(zip(examples(), CAPTIONS, strict=True)))
def test_an_example_loads(example, captions, tmp_path, monkeypatch):
    listing, files, code = example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    make(listing, files)
    data = config_of(code).data
    found = []
    for split in ("train", "validation", "test"):
        try:
            found += load(data, split)["captions"][:]
        except DixitError as error:
            assert "is empty" in str(error)  # the hash of so few names leaves some splits empty
    assert sorted(found) == captions


def test_karpathy_splits_are_those_of_the_file(tmp_path, monkeypatch):
    listing, files, code = next(example for example in examples() if "dataset_coco" in example[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    make(listing, files)
    data = config_of(code).data
    assert [len(load(data, split)) for split in ("train", "test")] == [2, 1]
