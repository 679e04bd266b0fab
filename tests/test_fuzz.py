"""Hostile input, made up by hypothesis: whatever is read gives a sound result or one line that names it.

Cases that were found once stand beside each test as `@example`. More of them: `pytest tests/test_fuzz.py
--hypothesis-profile=long`.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dixit.common import DixitError
from dixit.config import Config, load_config, to_dict
from dixit.data.archives import read_members
from dixit.data.captions import texts
from dixit.data.images import open_image
from dixit.data.scenes import TONES, WORD_CLASSES
from dixit.training.checkpoints import FILES, load_weights, resume, save_checkpoint
from dixit.training.task import Task
from eval.drift import claims, no_doubled_word
from eval.rewrites import KINDS

# The same cases each time, so that a test that fails fails again; profile `long` (conftest.py) looks for new ones.
LONG = settings.get_current_profile_name() == "long"
few = settings(max_examples=1000 if LONG else 60, derandomize=not LONG, deadline=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def one_line(error: DixitError) -> None:
    assert str(error) and "\n" not in str(error), str(error)


def spoilt(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` cut short, with some bytes changed, or with bytes put in."""
    at = st.integers(0, len(whole) - 1)
    cut = at.map(lambda n: whole[:n])
    changed = st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=8).map(
        lambda edits: bytes(dict(edits).get(i, byte) for i, byte in enumerate(whole)))
    put = st.tuples(at, st.binary(max_size=40)).map(lambda x: whole[:x[0]] + x[1] + whole[x[0]:])
    return cut | changed | put


# --- configs ---

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
TREE = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                                       max_size=3), max_leaves=6)
KEYS = st.sampled_from([*to_dict(Config()), "train", "game"])
SECTIONS = {k: v for k, v in to_dict(Config()).items() if isinstance(v, dict)}
SECTION = st.sampled_from(sorted(SECTIONS)).flatmap(lambda name: st.dictionaries(
    st.sampled_from(sorted(SECTIONS[name])), TREE, max_size=4).map(lambda inner: {name: inner}))


def reads(path: Path, text: str | bytes, overrides: list[str]) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(path, overrides)
    except DixitError as error:
        return one_line(error)
    again = path.with_name("again.yaml")
    again.write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
    assert load_config(again) == config


@few
@given(st.dictionaries(KEYS, TREE, max_size=4) | SECTION)
@example({"train": {"lr": float("nan")}})
@example({"train": {"accumulate": 0}})
@example({"policy": {"epochs": 0}})
@example({"out": "a\0b"})
def test_a_config_of_any_values(place, tree):
    reads(place / "config.yaml", yaml.safe_dump({"task": "caption"} | tree, allow_unicode=True), [])


@few
@example("[" * 5000)  # deeper than Python goes
@example("{a: " * 3000)
@example("train: {steps: " + "9" * 6000 + "}")  # longer than Python reads
@example("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: *c")
@example("name: &a {x: *a}")
@example("name: !!python/object/apply:os.system [true]")
@given(st.binary(max_size=80) | st.text(max_size=80) | st.text("{}[]:-&*!|>'\"#%@ \n\tab1", max_size=60))
def test_a_config_that_is_any_file(place, text):
    reads(place / "config.yaml", text, [])


@few
@given(st.lists(st.text(max_size=20) | st.tuples(
    st.sampled_from(["train.lr", "listeners.0.name", "game", "picks.0", "train.betas.1", "a.b", "..", "data.path"]),
    st.text(max_size=12)).map("=".join), max_size=3))
@example(["\n"])  # an error of one line must not quote it as it is
@example(["=\x1f\n"])
@example(["a." * 3000 + "=1"])
def test_any_overrides(place, overrides):
    reads(place / "config.yaml", "listeners: [{name: a}]\ntask: caption\n", overrides)


# --- images ---

def pictures() -> list[bytes]:
    found = []
    image = Image.radial_gradient("L").resize((20, 12)).convert("RGB")
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
                       ("GIF", "RGB"), ("WEBP", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB")):
        stream = io.BytesIO()
        made = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
        made.save(stream, kind)
        found.append(stream.getvalue())
    return found


@few
@given(st.binary(max_size=200) | st.sampled_from(pictures()).flatmap(spoilt))
def test_any_bytes_as_an_image(place, content):
    path = place / "a picture.png"
    path.write_bytes(content)
    for source in (path, io.BytesIO(content)):
        try:
            image = open_image(source, 16, "" if source is path else "the upload")
            assert image.mode == "RGB" and image.size == (16, 16)
        except DixitError as error:
            one_line(error)
            assert str(error).startswith(str(path) if source is path else "the upload")


# --- checkpoints ---

class Nothing(Task):
    """A task with one number to keep."""

    def __init__(self) -> None:
        self.trained, self.kept = nn.Identity(), 0

    def state_dict(self) -> dict:
        return {"kept": 7}

    def load_state_dict(self, state: dict) -> None:
        self.kept = state["kept"]


def layer(value: float) -> tuple[nn.Linear, torch.optim.Optimizer]:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, value)
    nn.init.constant_(module.bias, value)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.fixture(scope="module")
def saved(place) -> Path:
    """Checkpoints of steps 1 and 2, of weights about 1 and 2."""
    for step in (1, 2):
        save_checkpoint(place / "run" / "checkpoints" / f"step_{step:06d}", step, *layer(float(step)), Nothing())
    return place / "run"


@few
@given(st.data())
def test_any_damage_to_a_checkpoint(place, saved, data):
    """What is loaded is one of the two as it was written; where nothing is, that is said."""
    shutil.copytree(saved, place / "try")
    try:
        for step in data.draw(st.sampled_from([(1,), (2,), (1, 2)])):
            name = data.draw(st.sampled_from([*FILES, "state.json"]))
            path = place / "try" / "checkpoints" / f"step_{step:06d}" / name
            path.write_bytes(data.draw(st.binary(max_size=60) | spoilt(path.read_bytes())))
        module, optimizer = layer(0.0)
        task = Nothing()
        try:
            step = resume(place / "try", module, optimizer, task)
        except DixitError as error:
            one_line(error)
        else:
            assert step in (1, 2) and task.kept == 7
            assert torch.equal(module.weight, layer(float(step))[0].weight)
    finally:
        shutil.rmtree(place / "try")


@few
@given(st.dictionaries(st.sampled_from(["step", "task", "figure", "sha256", "state_sha256", "x"]), TREE) | TREE)
def test_any_json_as_the_state_of_a_checkpoint(place, saved, tree):
    shutil.copytree(saved, place / "try")
    try:
        (place / "try" / "checkpoints" / "step_000002" / "state.json").write_text(json.dumps(tree))
        assert resume(place / "try", *layer(0.0), Nothing()) == 1
    finally:
        shutil.rmtree(place / "try")


@few
@given(st.data())
def test_any_bytes_as_weights(place, saved, data):
    path = place / "weights.safetensors"
    good = (saved / "checkpoints" / "step_000001" / FILES[0]).read_bytes()
    path.write_bytes(data.draw(st.binary(max_size=60) | spoilt(good)))
    module = layer(0.0)[0]
    try:
        load_weights(module, path)
        assert module.weight.shape == (2, 3)
    except DixitError as error:
        one_line(error)


# --- archives ---

def archives() -> dict[str, bytes]:
    from archives import make_deb, tar_bytes

    members = {"pkg/a.txt": b"hello" * 20, "pkg/b.bin": bytes(range(256))}
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    with tempfile.TemporaryDirectory() as folder:
        debs = {f".{kind}.deb": make_deb(Path(folder) / "a.deb", f"data.tar.{kind}",
                                         tar_bytes(members, f"w:{kind}")).read_bytes() for kind in ("xz", "gz")}
    return {".whl": wheel.getvalue(), ".tgz": tar_bytes(members, "w:gz", links={"other": "/etc/passwd"}), **debs}


def unpacks(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        for name, data in read_members(path, r"pkg/.*").items():
            assert ".." not in PurePosixPath(name).parts and not name.startswith("/") and isinstance(data, bytes)
    except DixitError as error:
        one_line(error)


def edited(suffix: str, at: int, byte: int) -> tuple[str, bytes]:
    content = bytearray(archives()[suffix])
    content[at] = byte
    return suffix, bytes(content)


@few
@given(st.sampled_from(sorted(archives().items())).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.binary(max_size=100) | spoilt(pair[1]))))
@example(edited(".whl", 476, 2))  # a member said to begin before the file: OSError
@example(edited(".whl", 40, 255))  # a stream that does not inflate: zlib.error
def test_any_bytes_as_an_archive(place, archive):
    unpacks(place / f"a{archive[0]}", archive[1])


@few
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["pkg/../x", "/pkg/x", "./pkg/x", "pkg//x", "pkg/./x", "pkg\\x", "..", "pkg/"]),
    st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
                     tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])), max_size=4))
def test_an_archive_with_any_members(place, members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"abc") if kind == tarfile.REGTYPE else None)
    unpacks(place / "any.tgz", stream.getvalue())


# --- captions ---

KNOWN = frozenset().union(*WORD_CLASSES.values()) | set(TONES)
WORDS = st.lists(st.sampled_from([*sorted(KNOWN), "a", "an", "and", "background", "on", "the", "discs", "violet", ","]),
                 max_size=14).map(" ".join)


@few
@given(st.text(max_size=80) | WORDS | st.tuples(WORDS, st.text(max_size=20)).map("".join))
@example("")
@example("background")
@example("A\x00red\u202ecircle\ud800")
def test_any_text_as_a_caption(text):
    found = claims(text)
    assert not text.isascii() or found == claims(text.upper())
    for claim in found:
        said = [word for kind, words in claim.items() if kind != "of" for word in words]
        assert claim["of"] in ("object", "background")
        assert said and all(word in KINDS or word in TONES for word in said)
    assert no_doubled_word([text]).tolist() in ([0.0], [1.0])
    assert all(line and line == " ".join(line.split()) for line in texts([text, None, 3]))
