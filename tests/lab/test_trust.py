"""Files and the network: nothing that is read runs code, and nothing is sent."""

import os
import re
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

import composer_ls
from composer_ls.errors import TeacherError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.training.teacher import load_teacher

SOURCES = sorted(Path(composer_ls.__file__).parent.rglob("*.py"))


def test_every_file_of_tensors_is_read_without_running_code():
    loads = [(file, call) for file in SOURCES for call in re.findall(r"torch\.load\([^)]*\)", file.read_text())]
    assert len(loads) >= 2
    for file, call in loads:
        assert "weights_only=True" in call, (file, call)
    for file in SOURCES:
        assert not re.search(r"\bpickle\.loads?\(|yaml\.(unsafe_)?load\(|(?<![.\w])(eval|exec)\(", file.read_text()), (
            file
        )


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_checkpoint_that_would_run_a_command_is_refused(tmp_path):
    torch.save({"state": {"model": {"0.weight": Evil(tmp_path / "ran")}}}, tmp_path / "evil.pt")
    with pytest.raises(TeacherError, match="is not a checkpoint of Composer's Trainer"):
        load_teacher(tmp_path / "evil.pt", architecture=nn.Sequential(nn.Linear(2, 2)))
    assert not (tmp_path / "ran").exists()


def test_training_and_reporting_never_leave_the_machine(tmp_path, monkeypatch, capsys):
    asked = []

    def connect(self, address, original=socket.socket.connect):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError(f"no network: {address}")
        return original(self, address)

    def look_up(host, *args, original=socket.getaddrinfo, **named):
        if host not in (None, "", "127.0.0.1", "::1", "localhost", socket.gethostname()):
            asked.append(host)
            raise OSError(f"no network: {host}")
        return original(host, *args, **named)

    monkeypatch.chdir(tmp_path)  # where diagnose writes its page
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    run = tmp_path / "run"
    for command in (
        ["train", "digits-mlp", "duration=1ep", "--out", str(run)],
        ["report", str(run)],
        ["diagnose", str(run)],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0, capsys.readouterr().err
    assert not asked
