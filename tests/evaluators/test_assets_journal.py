"""Files of others are used only when their checksum is right; answers kept in a journal survive what cuts a call off."""

import hashlib
import json
from pathlib import Path

import pytest

from apex.errors import UserError
from evaluators import assets
from evaluators.journal import Journal

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Registers one file, which lies at a file: address, with the checksum given."""

    def register(sha256: str) -> assets.Asset:
        (tmp_path / "elsewhere").write_bytes(CONTENT)
        monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "assets"))
        asset = assets.Asset("it", "some weights", (tmp_path / "elsewhere").as_uri(), "a/b.pth", sha256, "7 B", "MIT")
        monkeypatch.setattr(assets, "registry", lambda: {"it": asset})
        return asset

    return register


@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8], ""])
def test_what_is_fetched_is_found_and_nothing_else_is_left(known, sha256: str) -> None:
    asset = known(sha256)
    with pytest.raises(UserError, match=r"a/b.pth: not found; it is some weights \(7 B, MIT\): .*fetch it or give --weights PATH"):
        assets.find("it", option="--weights")
    assert assets.fetch("it") == assets.find("it") == asset.path
    assert asset.path.read_bytes() == CONTENT
    assert sorted(p.name for p in asset.path.parent.iterdir()) == ["b.pth", "b.pth.sha256"]


@pytest.mark.parametrize("sha256", ["0" * 64, "00000000"])
def test_another_file_than_the_one_named_does_not_get_its_name(known, sha256: str) -> None:
    asset = known(sha256)
    with pytest.raises(UserError, match=f"SHA-256 is {DIGEST}, expected {sha256}"):
        assets.fetch("it")
    assert list(asset.path.parent.iterdir()) == []


def test_a_file_changed_after_its_first_fetch_is_refused_though_nobody_states_its_checksum(known) -> None:
    known("")
    assets.fetch("it").write_bytes(b"other")
    with pytest.raises(UserError, match=f"expected {DIGEST}; it is not some weights"):
        assets.find("it")


def test_without_a_network_one_line_says_what_to_do(known, tmp_path: Path) -> None:
    known("")
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(UserError, match=r"could not be fetched from file:.*fetch it elsewhere and put it at .*a/b.pth"):
        assets.fetch("it")


def test_a_given_path_is_taken_or_named(known, tmp_path: Path) -> None:
    known(DIGEST)
    assert assets.find("it", tmp_path / "elsewhere") == tmp_path / "elsewhere"
    with pytest.raises(UserError, match=r"--weights nowhere: not found; expected some weights"):
        assets.find("it", "nowhere", "--weights")


def test_the_registry_is_whole() -> None:
    for asset in assets.registry().values():
        assert asset.url.startswith("https://") and asset.what and asset.licence and asset.size
        assert len(asset.sha256) in (0, 8, 64) and set(asset.sha256) <= set("0123456789abcdef")
        assert not Path(asset.file).is_absolute() and ".." not in Path(asset.file).parts


def test_a_journal_gives_back_its_answers_and_drops_a_torn_line(tmp_path: Path) -> None:
    with Journal(tmp_path, "answers", {"judge": "a"}) as journal:
        journal.add("p0", {"score": 1})
        journal.add("p1", [True, None])
    with journal.path.open("ab") as file:
        file.write(b'["p2", {"sco')
    with Journal(tmp_path, "answers", {"judge": "a"}) as journal:
        assert (journal.get("p0"), journal.get("p1"), journal.get("p2"), len(journal)) == ({"score": 1}, [True, None], None, 2)
        assert "p1" in journal and "p2" not in journal
        journal.add("p2", 3)
    assert [json.loads(line) for line in journal.path.read_text().splitlines()][1:] == [
        ["p0", {"score": 1}],
        ["p1", [True, None]],
        ["p2", 3],
    ]


def test_a_journal_of_other_settings_is_another_file(tmp_path: Path) -> None:
    with Journal(tmp_path, "answers", {"judge": "a"}) as first, Journal(tmp_path, "answers", {"judge": "b"}) as second:
        first.add("p0", 1)
        assert second.get("p0") is None and first.path != second.path


def test_a_journal_that_is_none_is_named_and_kept(tmp_path: Path) -> None:
    with Journal(tmp_path, "answers", {}) as journal:
        journal.add("p0", 1)
    journal.path.write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match=r"not a journal of this evaluator .*move it away"):
        Journal(tmp_path, "answers", {})
    assert journal.path.read_text() == "{}\nnonsense\n"
