"""Commands in processes of their own.

They are forked by a server that finds this module as a support file; pytest's command line does not make test modules importable.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from composer_ls.lab.commands.cli import main

PATIENCE = 300  # seconds until a test gives up
PRELOADED = ["composer_ls.lab.training.train", "composer_ls.lab.tasks.classification.task", "sklearn.datasets"]


class Command:
    """A command in a process of its own, with its output in a file.

    It is forked from a process that has imported everything, as a run of a comparison is, which saves most of the time. A
    comparison or a search must not be, and is started as from a shell.
    """

    def __init__(self, *arguments):
        self.arguments = [str(argument) for argument in arguments]
        descriptor, output = tempfile.mkstemp()
        os.close(descriptor)
        self.output = Path(output)
        if self.arguments[0] in ("compare", "tune"):
            with self.output.open("w") as file:
                command = [sys.executable, "-m", "composer_ls", *self.arguments]
                self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(target=do, args=(self.arguments, str(self.output)))
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    @property
    def status(self):
        """The exit status; ``None`` while it is running."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def ended(self):
        """The exit status and everything that was printed, once it is over."""
        deadline = time.monotonic() + PATIENCE
        while self.status is None and time.monotonic() < deadline:
            time.sleep(0.02)
        words = self.output.read_text()
        self.output.unlink()
        assert self.status is not None, f"{self.arguments} does not end: {words}"
        return self.status, words


def do(arguments, output):
    """Run a command in a forked process, as a shell would."""
    file = os.open(output, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # importing Composer has set both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    main(arguments)
