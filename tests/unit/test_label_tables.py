"""Label tables as people and their programs write them: headers, separators, encodings."""

import pytest

from stm.errors import DataError
from tests.pictures import labels_of, opened, picture

PEOPLES = {
    "any header": ("Image_No;Diagnosis\n", ";", False),
    "any header, without suffixes": ("id_code,diagnosis\n", ",", True),
    "more columns, one of them named as labels are": ("isic,age,target\n", ",30,", True),
    "no header": ("", "\t", False),
    "the line that tells Excel the separator": ("sep=;\r\nfilename;label\r\n", ";", False),
    "any separator in that line": ("sep=|\nfilename|label\n", "|", False),
}


@pytest.mark.parametrize(("header", "between", "stems"), PEOPLES.values(), ids=PEOPLES)
def test_a_table_whose_values_tell_its_columns(tmp_path, header, between, stems):
    rows = {"0.png": 2, "1.png": 0, "2.png": 0}  # the classes are names of files too, but none labels an image twice
    for name in rows:
        picture(tmp_path / name)
    lines = [f"{name.removesuffix('.png') if stems else name}{between}{label}" for name, label in rows.items()]
    (tmp_path / "labels.csv").write_text(header + "\n".join(lines) + "\n")
    assert labels_of(opened(tmp_path)) == rows


def test_a_table_whose_values_tell_nothing_is_refused(tmp_path):
    """Two columns of files, two that may be labels, or captions in Hugging Face's table."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    for text in ("x,y\na.png,b.png\nb.png,a.png\n", "x,y,z\na.png,0,1\nb.png,0,1\n", "x,y\nc.png,1\n"):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match="name the columns: --image-column"):
            opened(tmp_path)
    (tmp_path / "labels.csv").rename(tmp_path / "metadata.csv")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a house\n")
    with pytest.raises(DataError, match="holds 2 images and no labels"):
        opened(tmp_path)


def test_a_table_of_another_system(tmp_path):
    """UTF-16 is Excel's "Unicode text"; Windows has other separators in paths, which lead nowhere else either."""
    picture(tmp_path / "in" / "ä.png")
    for name, encoding in (("in\\ä.png", "utf-16"), ("in/ä.png", "utf-16-be"), ("in\\ä", "utf-8-sig")):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        (tmp_path / "labels.csv").write_bytes(f"{mark}filename\tlabel\r\n{name}\t3\r\n".encode(encoding))
        assert labels_of(opened(tmp_path)) == {"in/ä.png": 3}
    for name in ("..\\a.png", "in\\..\\..\\a.png", "\\a.png"):
        (tmp_path / "labels.csv").write_text(f"filename,label\n{name},1\n")
        with pytest.raises(DataError, match="is not the name of a file in this folder"):
            opened(tmp_path)
