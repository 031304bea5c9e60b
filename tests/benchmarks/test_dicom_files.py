"""`benchmarks/dicom_files.py`: no file of pydicom differs, and a difference would be seen."""

import dicom_files as benchmark
import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pydicom's, of broken files
def test_no_file_of_pydicom_differs(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert benchmark.main(["--docs", str(page)]) == 0
    found = capsys.readouterr().out
    assert "decodings are those of pydicom" in found
    assert found.strip() in page.read_text()


def test_a_difference_is_found(tmp_path, monkeypatch):
    from data.trees import write_dicom

    write_dicom(tmp_path / "a.dcm", WindowCenter=100, WindowWidth=50)
    (tmp_path / "b.dcm").write_text("nothing")
    ((row,), reasons) = benchmark.tables([("tree", tmp_path)])
    assert row == ("2 of tree", 4, 2, 0, 2, 0)
    assert reasons == [(2, "refused", "neither a DICOM nor an image file", "b.dcm")]
    monkeypatch.setattr(benchmark, "read_pixels", lambda *_, **__: np.ones((2, 2)))
    ((row,), _) = benchmark.tables([("tree", tmp_path)])
    assert (row.held, row.differs, row.no_reference) == (0, 2, 2)
