"""The doctor's panel: what it says of logs, and of paths that are none."""

from __future__ import annotations

import pytest

pytest.importorskip("ipywidgets")

from dpo_lab.workbench.doctor import CAUSES, diagnose
from dpo_lab.workbench.doctor.page import headline
from dpo_lab.workbench.widgets import DoctorPanel
from tests.conftest import ROOT

LOGS = ROOT / "tests" / "doctor_logs"


@pytest.mark.parametrize("name", sorted(path.name for path in LOGS.iterdir()))
def test_it_says_what_the_doctor_says(name: str):
    panel, found = DoctorPanel(LOGS / name), diagnose(LOGS / name)
    assert headline(found) in panel.words.value
    places = [panel.findings.value.index(one.words.title) for one in found.findings]
    assert places == sorted(places)
    for one in found.findings:
        assert CAUSES[one.cause].notebook in panel.findings.value
    assert panel.picture() == panel.image.value
    assert bytes(panel.image.value).startswith(b"\x89PNG")
    assert repr(panel) == f"DoctorPanel({headline(found)})"


def test_a_path_that_is_no_log_is_said_in_the_panel(tmp_path):
    panel = DoctorPanel()
    assert repr(panel) == "DoctorPanel(no log yet)"
    for path, words in (("", "no log is named"), (str(tmp_path / "<b>none"), "&lt;b&gt;none")):
        panel.path.value = path
        panel.button.click()
        assert words in panel.words.value
        assert "<b>" not in panel.words.value
    (tmp_path / "notes.txt").write_text("hello")
    panel.path.value = str(tmp_path / "notes.txt")
    panel.button.click()
    assert "notes.txt" in panel.words.value
    assert panel.diagnosis is None
    with pytest.raises((ValueError, OSError)):
        DoctorPanel(tmp_path / "none")


def test_a_second_look_replaces_the_first():
    panel = DoctorPanel(LOGS / "healthy-ours")
    before = panel.image.value
    panel.path.value = str(LOGS / "displacement-ours")
    panel.button.click()
    assert panel.diagnosis.findings
    assert panel.image.value != before


def test_an_error_stands_alone_and_not_beside_an_earlier_log(tmp_path):
    panel = DoctorPanel(LOGS / "displacement-ours")
    assert panel.findings.value
    panel.path.value = str(tmp_path / "none")
    panel.button.click()
    assert "there is no file or folder" in panel.words.value
    assert (panel.findings.value, panel.in_words.value, panel.image.value) == ("", "", b"")
    assert panel.diagnosis is panel.picture() is None
    assert repr(panel) == "DoctorPanel(no log yet)"


def test_event_files_without_tensorboard_are_an_error_in_words(monkeypatch):
    monkeypatch.setattr("dpo_lab.workbench.doctor.reading.find_spec", lambda name: None)
    panel = DoctorPanel()
    panel.path.value = str(LOGS / "healthy-events")
    panel.button.click()
    assert "tensorboard" in panel.words.value
    assert panel.diagnosis is None
