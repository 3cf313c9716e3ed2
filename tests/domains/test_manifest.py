from __future__ import annotations

from pathlib import Path

import pytest

from domains.manifest import Files, Manifest, ManifestError, read_manifest


def read(root: Path, text: str, suffixes: tuple[str, ...] = (".png",), **settings: object) -> Manifest:
    (root / "raw").mkdir(exist_ok=True)
    (root / "labels.csv").write_text(text)
    return read_manifest(Files("raw", "labels.csv", **settings), suffixes, root)  # type: ignore[arg-type]


def test_rows_keep_the_manifests_order_and_every_other_column(tmp_path: Path) -> None:
    found = read(tmp_path, "path,group,split,source,age\nb.png,g1,train,x,40\na/a.png,g2,,y,\n")
    assert [row.key for row in found.rows] == ["b.png", "a/a.png"]
    assert found.rows[1].path == tmp_path / "raw/a/a.png"
    assert (found.rows[0].group, found.rows[0].split, found.rows[0].source) == ("g1", "train", "x")
    assert found.rows[0].columns == {"age": "40"}
    assert found.rows[1].columns == {"age": ""}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    found = read(tmp_path, "path,group,source,kind\na.png,1,x,1.0\nb.laz,2,x,1\nc.png,3,y,1\nd.png,4,x,2\n"
                           "e.png,5,y,1\nf.PNG,6,x,1\n", sources=("x",), where={"kind": "1"})
    assert [row.key for row in found.rows] == ["a.png", "f.PNG"]
    assert found.filtered == {"source": {"y": 2}, "suffix": {".laz": 1}, "where kind": {"2": 1}}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd.png", "a/../../secret.png", "http://host/a.png",
                                  "HTTPS://host/a.png", "/vsicurl/http://host/a.png", "/VSIZIP/a.zip/b.png",
                                  "sub/vsizip/a.png", "file:///etc/a.png", "s3://bucket/a.png"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ManifestError, match="found 1 that are empty, lead out"):
        read(tmp_path, f"path,group\nfine.png,1\n{path},2\n")


def test_a_link_out_of_the_folder_is_refused_unless_links_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "secret.png").write_text("x")
    (tmp_path / "raw/a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ManifestError, match="follow_links"):
        read(tmp_path, "path,group\na.png,1\n")
    assert len(read(tmp_path, "path,group\na.png,1\n", follow_links=True).rows) == 1


def test_a_linked_parent_folder_counts_as_leaving(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="lead out"):
        read(tmp_path, "path,group\nsub/a.png,1\n")


def test_an_absolute_path_inside_the_folder_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, f"path,group\n{tmp_path}/raw/sub/a.png,1\n")
    assert found.rows[0].key == "sub/a.png"


def test_a_mask_may_not_leave_the_folder_either(tmp_path: Path) -> None:
    text = "path,group,mask_path\na.png,1,m.png\nb.png,2,\n"
    rows = read(tmp_path, text, mask_column="mask_path").rows
    assert [row.mask_path for row in rows] == [tmp_path / "raw/m.png", None]
    with pytest.raises(ManifestError, match="lead out"):
        read(tmp_path, text.replace("m.png", "../m.png"), mask_column="mask_path")


@pytest.mark.parametrize(("text", "settings", "says"), [
    ("file,group\na.png,1\n", {}, "expected also path"),
    ("path,who\na.png,1\n", {}, "files.group_by"),
    ("path,group\na.png,\n", {}, "1 of 1 rows without one"),
    ("path,group\na.png,1\na.png,2\n", {}, "named more than once"),
    ("path,group\n./a.png,1\na.png,2\n", {}, "named more than once"),
    ("path,group,split\na.png,1,valid\n", {}, "found valid"),
    ("path;group\na.png;1\n", {}, "parted by semicolons.*Remedy: save it with commas"),
    ("path\tgroup\na.png\t1\n", {}, "parted by tabs"),
    ("path, group\na.png,1\n", {}, "blanks around the names of columns 2"),
    ("path,group,label,label\na.png,1,x,y\n", {}, "name of an earlier one .numbers 4"),
    ("path,group\nsub\\a.png,1\n", {}, "1 with backslashes .*Remedy: replace them"),
    ("path,group\nC:\\scans\\a.png,1\n", {}, "lead out of files.folder"),
    ("path,group\na.jpg,1\n", {}, "found no row to ingest"),
    ("path,group,source\na.png,1,x\n", {"sources": ("x", "z")}, "found no row of z"),
    ("path,group\na.png,1,surplus\n", {}, "another number of cells"),
    ("path,group\na.png\n", {}, "another number of cells"),
    ("path,group\na.png,1\n", {"where": {"kind": "ct"}}, "expected also kind"),
])
def test_an_unusable_manifest_says_found_expected_remedy(tmp_path: Path, text: str, settings: dict[str, object],
                                                         says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        read(tmp_path, text, **settings)


def test_endings_decide_and_numbers_are_no_endings(tmp_path: Path) -> None:
    (tmp_path / "raw/series.1").mkdir(parents=True)
    text = "path,group\na.nii.gz,1\nb.gz,2\nseries.1,3\n1.2.840.113,4\nplain,5\n"
    assert [row.key for row in read(tmp_path, text, (".nii.gz",)).rows] == ["a.nii.gz"]
    assert [row.key for row in read(tmp_path, text, ("/",)).rows] == ["series.1"]
    assert [row.key for row in read(tmp_path, text, ("",)).rows] == ["series.1", "1.2.840.113", "plain"]


def test_groups_come_from_the_rule_that_was_chosen(tmp_path: Path) -> None:
    text = "path,group\np1/a.png,x\np1/b.png,x\np22/c.png,x\n"
    expected = {"column": ["x"] * 3, "file": ["p1/a.png", "p1/b.png", "p22/c.png"], "folder": ["p1", "p1", "p22"]}
    for rule, groups in expected.items():
        assert [row.group for row in read(tmp_path, text, group_by=rule).rows] == groups
    by_pattern = read(tmp_path, text, group_by="pattern", group_pattern=r"p(\d+)/")
    assert [row.group for row in by_pattern.rows] == ["1", "1", "22"]
    with pytest.raises(ManifestError, match="1 of 3 rows without one"):
        read(tmp_path, text, group_by="pattern", group_pattern=r"p(1)/")


def test_a_pattern_without_a_bracket_or_without_its_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="bracket"):
        Files("raw", group_by="pattern", group_pattern="p1")
    with pytest.raises(ValueError, match="needed for"):
        Files("raw", group_pattern="p(1)")


def test_one_folder_per_class_needs_no_manifest_but_a_rule_for_groups(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/.hidden/4.txt"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text("x")
    found = read_manifest(Files("raw", group_by="file"), (".png",), tmp_path)
    assert [(row.key, row.split, row.columns["label"]) for row in found.rows] == [
        ("test/cat/3.png", "test", "cat"), ("train/cat/1.png", "train", "cat"), ("train/dog/2.png", "train", "dog")]
    with pytest.raises(ManifestError, match="without one"):
        read_manifest(Files("raw"), (".png",), tmp_path)


@pytest.mark.parametrize(("name", "suffixes", "num_rows", "left_out"), [
    ("cxr", (".jpg", ".jpeg"), 3222, {}),
    ("ct", (".nii.gz", ""), 577, {}),
    ("multispectral", (".tif",), 1944, {"suffix": {".trn": 1}}),
    ("pointcloud", (".off", ".ply"), 941, {"suffix": {".laz": 1}}),
])
def test_the_real_manifests_are_read_as_they_are(shared_data: Path, name: str, suffixes: tuple[str, ...], num_rows: int,
                                                 left_out: dict[str, dict[str, int]]) -> None:
    mask_column = "mask_path" if name in ("ct", "multispectral") else ""
    files = Files(str(shared_data), str(shared_data / name / "labels.csv"), mask_column=mask_column)
    found = read_manifest(files, suffixes, Path())
    assert len(found.rows) == num_rows
    assert found.filtered == left_out
    assert all(row.path.exists() for row in found.rows)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_manifest_in_another_encoding_is_answered_with_the_right_one(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "raw").mkdir()
    for text in ("path,group,Gr\u00f6\u00dfe\na.png,1,2\n", "path,group\n" + "a.png,1\n" * 5000 + "\u00e4.png,2\n"):
        (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
        with pytest.raises(ManifestError, match="no UTF-8. Expected a CSV in UTF-8. Remedy"):
            read_manifest(Files("raw", "labels.csv"), (".png",), tmp_path)


def test_what_programs_for_tables_add_changes_nothing(tmp_path: Path) -> None:
    plain = read(tmp_path, 'path,group,note\na.png,1,"x, y"\nsub/\u00e4.png,2,\n').rows
    bent = read(tmp_path, '\ufeffpath,group,note,,\r\na.png , 1,"x, y",,\r\n\r\nsub/\u00e4.png,2,,,\r\n').rows
    assert [(row.key, row.group, row.columns["note"]) for row in bent] == \
        [(row.key, row.group, row.columns["note"]) for row in plain]


def test_a_backslash_that_is_part_of_a_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a\\b.png").write_text("x")
    assert read(tmp_path, "path,group\na\\b.png,1\n").rows[0].key == "a\\b.png"


@pytest.mark.parametrize(("names", "alike"), [
    (("P1", "P2", "P10", "1.5", "15", "a_1", "a1", "P0", "p_0_1"), 0), (("P7", "p7", "x"), 2),
    (("12", "012", "12.0"), 3), (("A 1", "A1"), 2), (("\u00e4", "a\u0308"), 2), (("scan_007", "scan_7"), 2)])
def test_groups_that_hands_wrote_in_two_ways_are_said(tmp_path: Path, names: tuple[str, ...], alike: int) -> None:
    lines = "".join(f"{i}.png,{name}\n" for i, name in enumerate(names))
    said = read(tmp_path, f"path,group\n{lines}").said()
    assert len(said) == bool(alike)
    assert not said or f"{alike} of {len(names)} groups differ" in said[0]


def test_a_setting_that_names_a_source_of_no_row_is_refused(tmp_path: Path) -> None:
    found = read(tmp_path, "path,group,source\na.png,1,x\nb.png,2,y\n", sources=("x",))
    found.refuse_strange_sources({"read.by_source": ("x", "y"), "read.y_up_sources": ()})  # y is left out, and known
    with pytest.raises(ManifestError, match="read.by_source: found z, .* expected names among x, y. Remedy"):
        found.refuse_strange_sources({"read.by_source": ("x", "z")})
