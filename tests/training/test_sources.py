# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""Sources: every kind becomes an index, and damage is a row of it."""

import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.shards import bomb, damage_shards, jpeg, sa1b_members, write_shards, write_tar
from training.data import UnreadableImage, image_name, read_bytes, read_image
from training.images import parquet_rows
from training.images.sampling import EpochSampler
from training.images.sources import Source, fingerprint, open_source, passed_over
from training.images.tar_members import walk_tars


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A separate cache of `datasets`, where indices of tars are cached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def ids(*args, **kwargs):
    return list(open_source(Source(*args, **kwargs))["id"])


def test_a_folder_lists_its_images_in_a_fixed_order(folder):
    assert ids(folder) == ["a.png", "b.jpg", "sub/c.webp"]
    assert ids(folder, max_samples=2) == ["a.png", "b.jpg"]


def test_an_annotation_file_lists_its_images(folder):
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps({"images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.png"}]}))
    index = open_source(Source(folder, annotations))
    assert list(index["id"]) == ["7", "3"]
    assert index[0]["file"].endswith("b.jpg")


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        open_source(Source(tmp_path))
    with pytest.raises(FileNotFoundError, match="is no folder"):
        open_source(Source(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", ["[]", '{"images": [{"id": 1}]}', '{"images": []}', '{"images": [5]}', "5"])
def test_an_annotation_file_in_another_format_is_refused(folder, content):
    (folder / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json has no list `images`"):
        open_source(Source(folder, folder / "x.json"))


def test_an_annotation_file_is_read_in_every_encoding_of_json_and_a_truncated_one_is_refused(folder):
    records = [{"id": 7, "file_name": "b.jpg"}, {"id": 3.0, "file_name": "a.png"}]
    file, text = folder / "x.json", json.dumps({"images": records})
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        file.write_text(text, encoding=encoding)
        assert ids(folder, file) == ["7", "3"], encoding
    for content in (text[:-10].encode(), b"", b"{", b"\x1f\x8b\x08", text.encode("latin-1")[:20] + b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json is not JSON: .* Is it cut off\?"):
            open_source(Source(folder, file))


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"id": 9, "coco_url": "http://host/9.jpg"}, "has no `file_name`, but id, coco_url"),
        ({"file_name": "a.png"}, "has no `id`, but file_name"),
        ({"id": 9, "file_name": None}, "has the `file_name` null"),
        ({"id": 1.5, "file_name": "a.png"}, "has the `id` 1.5"),
        ({"id": True, "file_name": "a.png"}, "has the `id` true"),
        ({"id": 9, "file_name": ""}, 'has the `file_name` ""'),
        ({"id": 9, "file_name": "a\0.png"}, "has a `file_name` with a zero byte"),
        ("a.png", 'is "a.png" and no record'),
        ({"id": 9, "file_name": "\ud800.png"}, "its name is not UTF-8"),
    ],
)
def test_a_bad_record_of_an_annotation_file_is_skipped_and_named_by_position_and_field(folder, record, fault):
    records = [{"id": 7, "file_name": "b.jpg"}, record, {"id": 3, "file_name": "a.png"}]
    (folder / "x.json").write_text(json.dumps({"images": records}))
    index = open_source(Source(folder, folder / "x.json"))
    assert [row["error"] is None for row in index] == [True, False, True]
    assert fault in index[1]["error"] and (index[1]["error"].startswith("images[1] ") or "ud800" in index[1]["file"])
    with pytest.raises(OSError, match="images|UTF-8"):
        read_bytes(index[1])


def test_an_annotation_file_without_any_existing_image_is_refused(folder):
    (folder / "x.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "gone.jpg"}]}))
    with pytest.raises(FileNotFoundError, match="none of the first images"):
        open_source(Source(folder, folder / "x.json"))


def test_tars_are_read_by_pattern_by_folder_and_by_a_list_of_them(tmp_path):
    write_shards(tmp_path / "sa1b", [2, 3])
    expected = [f"sa_{number}.jpg" for number in range(1, 6)]
    assert ids(tmp_path / "sa1b") == expected
    assert ids(f"{tmp_path}/sa1b/sa_*.tar") == expected
    assert ids(f"{tmp_path}/sa1b/sa_000001.tar") == expected[2:]
    lines = [f"{tmp_path}/sa1b/sa_{number:06d}.tar" for number in (1, 0)]
    (tmp_path / "list.txt").write_text("# in another order\n" + "\n".join(lines) + "\n")
    assert ids(tmp_path / "list.txt") == expected[2:] + expected[:2]
    index = open_source(Source(tmp_path / "sa1b"))
    assert [read_bytes(row) for row in index] == [jpeg(number) for number in range(1, 6)]


def test_an_index_of_tars_is_cached_until_a_tar_changes(tmp_path):
    (tar,) = write_shards(tmp_path / "sa1b", [2])
    (file,) = open_source(Source(tar)).cache_files
    written = Path(file["filename"]).stat().st_mtime_ns
    assert open_source(Source(tar)).cache_files == [file] and Path(file["filename"]).stat().st_mtime_ns == written
    write_tar(tar, sa1b_members(1, 3))
    assert len(open_source(Source(tar))) == 3


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with ranges, as object stores do."""

    def refused(self) -> bool:
        status = self.server.refused.get(self.path.partition("?")[0])
        if self.server.failures:
            self.server.failures -= 1
            status = 503
        if status is not None:
            self.send_error(status)
        return status is not None

    def do_GET(self):
        if self.refused():
            return
        content = (self.server.folder / self.path.partition("?")[0].strip("/")).read_bytes()
        start, end = 0, len(content) - 1
        if "Range" in self.headers:
            start, end = (int(n) if n else end for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[start : end + 1]
        self.server.sent += len(part)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self):
        if self.path.partition("?")[0] in self.server.refused:
            self.refused()
            return
        size = (self.server.folder / self.path.partition("?")[0].strip("/")).stat().st_size
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.sent, server.failures, server.refused = tmp_path, 0, 0, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_remote_tars_are_read_by_ranges(tmp_path, server):
    large = {f"sa_{number}.jpg": jpeg(number) + bytes(10**6) for number in range(5)}
    write_tar(tmp_path / "sa.tar", large)
    index = open_source(Source(f"http://127.0.0.1:{server.server_port}/sa.tar"))
    assert server.sent < 300_000  # the headers of a file of five million bytes
    server.sent = 0
    assert read_bytes(index[2]) == large["sa_2.jpg"]
    assert server.sent == len(large["sa_2.jpg"])  # only this image


def test_a_temporarily_unreadable_tar_is_refused_and_no_index_without_it_cached(tmp_path, server):
    (tar,) = write_shards(tmp_path, [4])
    address = f"http://127.0.0.1:{server.server_port}/{tar.name}"
    server.failures = 10**6
    with pytest.raises(ValueError, match=f"`images`: .*{tar.name}: it cannot be read .*503.* remove the file from"):
        open_source(Source(address))
    server.failures = 0
    assert len(open_source(Source(address))) == 4


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_file_that_a_server_refuses_is_not_taken_for_missing(tmp_path, server, status):
    """Signed links expire: segment-anything#850."""
    address = f"http://127.0.0.1:{server.server_port}"
    datasets.Dataset.from_dict({"image": [{"bytes": jpeg(1)}]}).to_parquet(tmp_path / "b.parquet")
    write_shards(tmp_path, [1, 1])
    tars = [f"{address}/sa_{number:06d}.tar?signature=a*b[c]" for number in range(2)]
    (tmp_path / "list.txt").write_text("\n".join(tars))
    server.refused = {"/sa_000001.tar": status, "/b.parquet": status, "/list.txt": status}
    for images in (tmp_path / "list.txt", f"{address}/sa_000001.tar", f"{address}/b.parquet", f"{address}/list.txt"):
        with pytest.raises((ValueError, FileNotFoundError), match="cannot be read") as caught:
            open_source(Source(images))
        assert str(status) in str(caught.value) or "list.txt" in str(images)
    server.refused = {}
    assert len(open_source(Source(tmp_path / "list.txt"))) == 2


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_a_server_does_not_have_is_missing(tmp_path, server, status):
    address = f"http://127.0.0.1:{server.server_port}"
    write_shards(tmp_path, [1, 1])
    (tmp_path / "list.txt").write_text(f"{address}/sa_000000.tar\n{address}/sa_000001.tar\n")
    server.refused = {"/sa_000001.tar": status}
    assert [row["error"] is None for row in open_source(Source(tmp_path / "list.txt"))] == [True, False]
    with pytest.raises(FileNotFoundError, match="there is no http"):
        open_source(Source(f"{address}/sa_000001.tar"))


def test_a_file_of_a_server_that_does_not_respond_is_not_taken_for_missing(tmp_path, server):
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/a.tar\n")
    for images in (tmp_path / "list.txt", "http://127.0.0.1:9/a.tar"):
        with pytest.raises(ValueError, match="cannot be read"):
            open_source(Source(images))


def test_a_source_that_cannot_be_opened_is_refused_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`images`: nowhere://a.tar cannot be read"):
        open_source(Source("nowhere://a.tar"))
    for address, package in (("oci://bucket@space/a*.tar", "ocifs"), ("oss://bucket/a.parquet", "ossfs")):
        with pytest.raises(ValueError, match=f"`images`: {address[:3]}.* `pip install {package}`"):
            open_source(Source(address))
    (tar,) = write_shards(tmp_path, [1])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tar / "cache")
    with pytest.raises(
        ValueError, match="the index cannot be written to .* set HF_DATASETS_CACHE to a writable folder"
    ):
        open_source(Source(tar))


ODD_NAMES = ["a::b", "[2024] *?", "100% #1", "http:", "zip::c", "~x", "a b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_existing_path_is_taken_literally(tmp_path, name):
    """Also datasets#7468, fsspec#838."""
    root = tmp_path / name
    (root / "images" / name).mkdir(parents=True)
    (root / "images" / name / f"{name}.jpg").write_bytes(jpeg(1))
    records = [{"id": 1, "file_name": f"{name}/{name}.jpg"}]
    (root / f"{name}.json").write_text(json.dumps({"images": records}))
    (root / "tars").mkdir()
    write_tar(root / "tars" / f"{name}.tar", {f"{name}.jpg": jpeg(1)})
    (root / f"{name}.txt").write_text(f"{root}/tars/{name}.tar\n")
    (root / "parquet" / "data").mkdir(parents=True)
    table = tmp_path / "table"
    datasets.Dataset.from_dict({"image": [{"bytes": jpeg(1), "path": None}]}).to_parquet(table)
    for file in (root / "parquet" / "data" / "train-00000-of-00001.parquet", root / f"{name}.parquet"):
        shutil.copy(table, file)
    for images in (
        "images",
        f"images/{name}/{name}.jpg",
        "images/**/*.jpg",
        "tars",
        "tars/*.tar",
        f"tars/{name}.tar",
        f"{name}.txt",
        "parquet",
        "parquet/**/*.parquet",
        f"{name}.parquet",
    ):
        assert [read_bytes(row) for row in open_source(Source(root / images))] == [jpeg(1)], images
    (row,) = open_source(Source(root / "images", root / f"{name}.json"))
    assert read_bytes(row) == jpeg(1)


def test_a_file_name_that_is_not_utf8_is_one_named_row_and_allowed_within_a_tar(tmp_path):
    bad = os.fsdecode(b"caf\xe9")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (bad, "good"):
        (folder / f"{name}.jpg").write_bytes(jpeg(1))
    index = open_source(Source(folder))
    assert sorted(row["error"] or "" for row in index) == ["", "its name is not UTF-8: rename it"]
    assert any(row["error"] and row["id"] == r"caf\xe9.jpg" for row in index)
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "good.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(f"{bad}.jpg")
        info.size = len(jpeg(1))
        tar.addfile(info, io.BytesIO(jpeg(1)))
    assert [(row["id"], read_bytes(row) == jpeg(1)) for row in open_source(Source(tars))] == [(r"caf\xe9.jpg", True)]
    shutil.copy(tars / "good.tar", tars / f"{bad}.tar")
    (tmp_path / "list.txt").write_bytes(b"".join(os.fsencode(f"{file}\n") for file in sorted(tars.iterdir())))
    for images in (tars, f"{tars}/*.tar", tmp_path / "list.txt"):
        rows = {row["file"].rsplit("/", 1)[-1]: row["error"] for row in open_source(Source(images))}
        assert rows == {"good.tar": None, r"caf\xe9.tar": "its name is not UTF-8: rename it"}
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for name in ("good", bad):
        datasets.Dataset.from_dict({"image": [{"bytes": jpeg(1)}]}).to_parquet(tmp_path / "x.parquet")
        (tmp_path / "x.parquet").rename(parquet / f"{name}.parquet")
    assert sorted(row["error"] is None for row in open_source(Source(parquet))) == [False, True]


def test_linked_folders_are_followed_once_each(tmp_path):
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    (root / "tree").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    (root / "tree" / "a.jpg").write_bytes(jpeg(1))
    (elsewhere / "b.jpg").write_bytes(jpeg(2))
    (elsewhere / "deep" / "c.jpg").write_bytes(jpeg(3))
    (root / "another").symlink_to(root / "tree")
    (root / "linked").symlink_to(elsewhere)
    (root / "zlinked").symlink_to(elsewhere)
    (elsewhere / "deep" / "loop").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "d.jpg").symlink_to(elsewhere / "b.jpg")
    index = open_source(Source(root))
    assert list(index["id"]) == ["d.jpg", "linked/b.jpg", "linked/deep/c.jpg", "tree/a.jpg"]
    assert passed_over(index) == {"folders linked again": 3, "others": 1}
    for kind, suffix in (("tars", "tar"), ("set", "parquet")):
        real = tmp_path / f"real {kind}"
        if suffix == "tar":
            write_shards(real, [2])
        else:
            real.mkdir()
            datasets.Dataset.from_dict({"image": [{"bytes": jpeg(n)} for n in range(2)]}).to_parquet(
                real / "a.parquet"
            )
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "linked").symlink_to(real)
        assert len(open_source(Source(tmp_path / kind))) == 2


IMAGES = ["a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e.avif", "f.jp2", "g.ppm", "h.tiff", "i.tar.jpg"]
PASSED_OVER = {
    "j.heic": ".heic",
    "k.heic": ".heic",
    "l.txt": ".txt",
    "m": "others",
    "n.tar.gz": ".tar.gz",
    "o.7": "others",
}
LITTER = [
    "._a.jpg",
    ".hidden.png",
    ".ipynb_checkpoints/a.jpg",
    "@eaDir/a.jpg",
    "__MACOSX/a.jpg",
    "Thumbs.db",
    ".DS_Store",
]


def counts_of(names):
    counts = {}
    for kind in names:
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_skipped_files_of_folders_and_tars_are_counted_and_system_files_are_not_images(tmp_path):
    root = tmp_path / "images"
    names = [*IMAGES, *PASSED_OVER, *LITTER]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(1))
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    expected = counts_of([*PASSED_OVER.values(), *["hidden or of a system"] * len(LITTER)])
    index = open_source(Source(root))
    assert list(index["id"]) == IMAGES
    assert passed_over(index) == expected | {"pipes, sockets or devices": 1}
    write_tar(tmp_path / "a.tar", {f"./{name}": jpeg(1) for name in names})
    write_tar(tmp_path / "b.tar", {"x.jpg": jpeg(1), "x.json": b"{}", "x.txt": b""})
    index = open_source(Source(f"{tmp_path}/*.tar"))
    assert list(index["id"]) == [*(f"./{name}" for name in IMAGES), "x.jpg"]
    assert passed_over(index) == expected | {".json": 1, ".txt": 2}
    # Also if the index is read from the cache, and if only a part of it is used.
    assert passed_over(open_source(Source(f"{tmp_path}/*.tar", max_samples=1))) == expected | {".json": 1, ".txt": 2}


def test_a_folder_of_several_kinds_is_refused_and_a_pattern_selects_one(tmp_path, parquet):
    write_shards(tmp_path / "tars", [2, 2])
    (tmp_path / "tars" / "preview.png").write_bytes(jpeg(1))
    with pytest.raises(ValueError, match=r"1 images \(preview\.png\) and 2 tars \(sa_000000\.tar\): which are meant"):
        open_source(Source(tmp_path / "tars"))
    assert len(ids(f"{tmp_path}/tars/**/*.tar")) == 4
    assert ids(f"{tmp_path}/tars/*.png") == ["preview.png"]
    (parquet / "assets").mkdir()
    (parquet / "assets" / "teaser.png").write_bytes(jpeg(1))
    with pytest.raises(ValueError, match=r"1 images \(assets/teaser\.png\) and 2 Parquet files .*/\*\*/\*\.parquet"):
        open_source(Source(parquet))
    assert len(ids(f"{parquet}/**/*.parquet")) == 14
    (tmp_path / "tars" / "preview.png").unlink()
    (tmp_path / "tars" / "sa_000002.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 tars .* and 1 compressed tars \(sa_000002\.tar\.gz\)"):
        open_source(Source(tmp_path / "tars"))
    for tar in (tmp_path / "tars").glob("*.tar"):
        tar.unlink()
    with pytest.raises(ValueError, match="holds 1 compressed tars .* Unpack them"):
        open_source(Source(tmp_path / "tars"))


def test_of_a_folder_with_other_tables_the_parquet_files_of_the_split_are_read(parquet):
    shutil.copy(parquet / "data" / "train-00000-of-00002.parquet", parquet / "data" / "test-00000-of-00001.parquet")
    for name in ("a.csv", "b.csv", "c.json"):
        (parquet / name).write_text("{}")
    (parquet / ".cache").mkdir()
    index = open_source(Source(parquet))
    assert len(index) == 14 and len(open_source(Source(parquet, split="test"))) == 7
    assert passed_over(index) == {
        ".csv": 2,
        ".json": 1,
        ".parquet of no or another split": 1,
        "hidden or of a system": 1,
    }


def test_damage_in_a_tar_is_a_row_of_its_index_and_later_members_are_found(tmp_path):
    whole, cut, hole = write_shards(tmp_path, [3, 3, 3])
    cut.write_bytes(cut.read_bytes()[: -10240 - 512 - 600])  # within the last image: its JSON and the end are gone
    content = bytearray(hole.read_bytes())
    second = list(walk_tars([str(hole)]))[1]["offset"] - 512
    content[second : second + 512] = b"\xff" * 512
    hole.write_bytes(content)
    found = {}
    for row in open_source(Source(tmp_path)):
        found.setdefault(row["file"].rsplit("/", 1)[-1], []).append((row["id"], row["error"]))
    assert found[whole.name] == [(f"sa_{number}.jpg", None) for number in (1, 2, 3)]
    assert [name for name, _ in found[cut.name]][:2] == ["sa_4.jpg", "sa_5.jpg"]
    assert any(error for _, error in found[cut.name])
    assert [name for name, error in found[hole.name] if error is None] == ["sa_7.jpg", "sa_9.jpg"]
    assert any(error and "are no file: damaged" in error for _, error in found[hole.name])


def test_members_after_a_damaged_one_with_a_long_name_are_found(tmp_path):
    """Python's `tar.add` writes two headers per member, for fractions of seconds."""
    file, names = tmp_path / "sa.tar", [f"sa_{number}.jpg" for number in range(5)]
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(jpeg(number)), 0.5
            tar.addfile(info, io.BytesIO(jpeg(number)))
    content = bytearray(file.read_bytes())
    own_header = list(walk_tars([str(file)]))[1]["offset"] - 512
    content[own_header : own_header + 512] = b"\xff" * 512
    file.write_bytes(content)
    rows = list(walk_tars([str(file)]))
    assert [row["id"] for row in rows if row["error"] is None] == [names[0], *names[2:]]
    assert [row["error"].endswith("are no file: damaged") for row in rows if row["error"]] == [True]
    assert all(read_bytes(row) == jpeg(int(row["id"][3])) for row in rows if row["error"] is None)


def test_a_hole_of_zeros_is_reported(tmp_path):
    """As in a file of full length whose middle was not downloaded."""
    members = {f"sa_{number}.jpg": jpeg(number, 400, 300) for number in range(6)}
    file = write_tar(tmp_path / "sa.tar", members)
    content, rows = bytearray(file.read_bytes()), list(walk_tars([str(file)]))
    first, last = rows[2]["offset"] - 512, rows[4]["offset"] - 512
    content[first:last] = bytes(last - first)
    file.write_bytes(content)
    found = list(walk_tars([str(file)]))
    assert [row["id"] for row in found if row["error"] is None] == ["sa_0.jpg", "sa_1.jpg", "sa_4.jpg", "sa_5.jpg"]
    assert [row["error"] for row in found if row["error"]] == [
        f"bytes {first} to {last} are zeros: were they never written?"
    ]


def test_a_tar_truncated_anywhere_is_reported(tmp_path):
    (tar,) = write_shards(tmp_path, [2])
    content = tar.read_bytes()
    end = len(content.rstrip(b"\0"))  # within the last member
    for length in [*range(0, end, 97), 511, 512, 1024, end + 1]:
        tar.write_bytes(content[:length])
        rows = list(walk_tars([str(tar)]))
        assert any(row.get("error") for row in rows), (length, rows)
        for row in rows:
            if row.get("error"):
                with pytest.raises(OSError):
                    read_bytes(row)
            else:
                assert len(read_bytes(row)) == row["size"]


def test_concatenated_tars_are_one_tar(tmp_path):
    first, second = write_shards(tmp_path, [2, 2])
    first.write_bytes(first.read_bytes() + second.read_bytes())
    rows = list(walk_tars([str(first)]))
    assert [row["id"] for row in rows] == ["sa_1.jpg", "sa_2.jpg", "sa_3.jpg", "sa_4.jpg"]
    assert not any(row.get("error") for row in rows)


def test_tars_without_any_image_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"notes.txt": b"nothing"})
    with pytest.raises(ValueError, match=r"no image is in .*a\.tar: the tar holds no image"):
        open_source(Source(tmp_path))
    (tmp_path / "b.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"no image is in .*a\.tar, .*b\.tar"):
        open_source(Source(tmp_path))


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"is compressed: .* Unpack it"):
        open_source(Source(tmp_path / "x.tar.gz"))


def test_lists_of_other_files_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(ValueError, match=r"lists tars, one per line; 'a\.jpg' is none"):
        open_source(Source(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="lists no tar"):
        open_source(Source(tmp_path / "list.txt"))
    with pytest.raises(FileNotFoundError, match="the list .* cannot be read"):
        open_source(Source(tmp_path / "nowhere.txt"))


def test_a_listed_tar_that_is_missing_is_a_row_with_an_error(tmp_path):
    (tar,) = write_shards(tmp_path, [2])
    (tmp_path / "list.txt").write_text(f"{tar}\n{tmp_path}/gone.tar\n")
    index = open_source(Source(tmp_path / "list.txt"))
    assert [row["error"] is None for row in index] == [True, True, False]
    assert "FileNotFoundError" in index[2]["error"] and "gone.tar" in image_name(index[2])


@pytest.fixture
def parquet(tmp_path):
    """A dataset as on the Hub: two files, row groups of three."""
    for part in range(2):
        images = [{"bytes": jpeg(10 * part + number), "path": None} for number in range(7)]
        rows = datasets.Dataset.from_dict({"image": images, "caption": ["a"] * 7})
        file = tmp_path / "set" / "data" / f"train-{part:05d}-of-00002.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.cast_column("image", datasets.Image()).to_parquet(file, batch_size=3)
    return tmp_path / "set"


def test_parquet_datasets_are_read_row_by_row_in_any_order(parquet):
    for images in (parquet, f"{parquet}/data/*.parquet"):
        index = open_source(Source(images))
        assert len(index) == 14
        for number in (0, 1, 5, 13, 2, 6, 7, 1):
            assert read_bytes(index[number]) == jpeg(number if number < 7 else number + 3)


@pytest.mark.parametrize(("groups", "rows"), [(118, 1000), (1183, 100), (1100, 1000)])
def test_training_decodes_few_more_parquet_rows_than_it_uses(monkeypatch, groups, rows):
    """A row cannot be read without the rows before it in its group. The numbers of COCO, one GPU, eight workers."""
    decoded = 0

    class Counted:
        def __init__(self, *_):
            self.row = 0

        def read(self, row):
            nonlocal decoded
            decoded += row + 1 - self.row
            self.row = row + 1

    monkeypatch.setattr(parquet_rows, "_Cursor", Counted)
    group, offset = (table.ravel() for table in np.mgrid[:groups, :rows])
    columns = {"file": ["a"] * len(group), "group": group, "column": ["image"] * len(group)}
    order = EpochSampler([datasets.Dataset.from_dict(columns)], 192).order(0)[:, 1]
    assert np.array_equal(np.sort(order), np.arange(len(group)))
    micro = order[: len(order) // 384 * 384].reshape(-1, 48)
    for worker in (0, 3):
        decoded, cursors, mine = 0, parquet_rows._Cursors(), micro[worker::8].ravel()
        for number in mine.tolist():
            cursors.read("a", int(group[number]), int(offset[number]), "image")
        assert decoded < 3.5 * len(mine)


def test_a_parquet_file_without_a_row_is_refused(tmp_path):
    datasets.Dataset.from_dict({"image": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"no image is in .*empty\.parquet: the file holds no row"):
        open_source(Source(tmp_path))


def test_a_table_beside_images_does_not_make_the_folder_a_parquet_dataset(folder):
    datasets.Dataset.from_dict({"caption": ["a"]}).to_parquet(folder / "captions.parquet")
    for file in (folder / "a.png", folder / "b.jpg"):
        file.unlink()
    assert ids(folder) == ["sub/c.webp"]


def test_workers_read_parquet_files_that_the_main_process_has_opened(parquet):
    import torch

    index = open_source(Source(parquet))
    expected = [read_bytes(row) for row in index]
    loader = torch.utils.data.DataLoader(range(14), num_workers=3, collate_fn=lambda n: read_bytes(index[n[0]]))
    assert list(loader) == expected


def test_a_dataset_without_the_split_or_the_column_is_refused(parquet):
    with pytest.raises(ValueError, match="`split`: .* no split 'val', but train"):
        open_source(Source(parquet, split="val"))
    with pytest.raises(ValueError, match="`images`: .*: there is no `column` 'picture', but image, caption"):
        open_source(Source(parquet, column="picture"))


def test_a_damaged_parquet_file_is_a_row_with_an_error(parquet):
    file = sorted(parquet.rglob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:500])
    index = open_source(Source(parquet))
    assert len(index) == 8 and [row["error"] is None for row in index] == [False] + [True] * 7


def test_a_column_without_images_is_an_error_per_row(parquet):
    with pytest.raises(ValueError, match="column 'caption' holds no encoded image"):
        read_bytes(open_source(Source(parquet, column="caption"))[0])


def test_every_kind_of_damage_is_named(tmp_path):
    files = write_shards(tmp_path, [4, 4, 4])
    expected = list(damage_shards(tmp_path, files))
    messages = []
    for row in open_source(Source(tmp_path)):
        try:
            read_image(row, 96)
        except UnreadableImage as error:
            messages.append(str(error))
    for part in expected:
        assert any(part in message for message in messages), (part, messages)
    assert len(bomb()) < 5000


def test_the_fingerprint_depends_on_the_images_and_their_order(folder, tmp_path):
    index = open_source(Source(folder))
    assert fingerprint(index) == fingerprint(open_source(Source(folder)))
    assert fingerprint(index) != fingerprint(index.select([1, 0, 2]))
    assert fingerprint(index) != fingerprint(index.select([0, 1]))
