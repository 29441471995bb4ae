"""What the end-to-end tests of `densemamba train` share: a tiny corpus and model, launching, and reading what a run wrote."""

import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["DENSEMAMBA"]
SOURCE = Path(os.environ["SOURCE_DIR"])
LIMIT_SECONDS = 120  # for one job; none takes a tenth of it, and one that hangs must fail

OK, FAILURE, USAGE, RETRYABLE = 0, 1, 2, 75  # ExitCode of runtime/error.h
SKIPPED = 77  # SKIP_RETURN_CODE of tests/CMakeLists.txt
STEPS = 8
MODEL = {"model.layers": 3, "model.d_model": 32, "model.dense_depth": 2}
TRAIN = {"train.batch": 8, "train.micro_batch": 2, "train.sequence": 32, "train.steps": STEPS, "optimizer.warmup_steps": 2,
         "optimizer.lr": 3e-3, "checkpoint.every": 2, "checkpoint.keep": 100, "run.device": "cpu"}


def write_corpus(path, documents=300, seed=1):
    """A .jsonl file of sentences over few words, so that a tiny model learns something in a few steps."""
    source = random.Random(seed)
    words = ["mamba", "dense", "hidden", "state", "scan", "layer", "gate", "the", "of", "a", "reads", "λ"]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            text = " ".join(source.choices(words, k=source.randint(3, 40)))
            file.write(json.dumps({"text": text, "meta": {"pile_set_name": "Test"}}) + "\n")
    return path


def gpus():
    """GPUs that a program started from here sees."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def main_on_gpus(needed):
    """The tests of the calling script; or one line, where there are fewer GPUs."""
    if gpus() < needed:
        print(f"skipped: needs {needed} GPU{'s' * (needed > 1)}, and sees {gpus()}")
        sys.exit(SKIPPED)
    unittest.main()


def arguments(options):
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def mpirun(ranks):
    return ["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks > 0 else ["env", "OMPI_MCA_ess_singleton_isolated=1"]


class Result:
    """How a job ended. `ours` are the lines of stderr that the program itself wrote, without mpirun's."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        self.ours = [line for line in err.splitlines() if line.startswith("densemamba")]

    def __str__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(*command, **how):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", timeout=LIMIT_SECONDS, check=False, **how)
    return Result(done.returncode, done.stdout, done.stderr)


class TrainTest(unittest.TestCase):
    """The tests of a class share a directory, `self.folder`, with the corpus `a.jsonl` in it; each names its runs."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="densemamba."))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.data = write_corpus(cls.folder / "a.jsonl")

    def command(self, run_name, ranks=0, tensor=1, inject=(), **options):
        """`mpirun -n RANKS densemamba train` on the tiny model; ranks=0 starts one process without mpirun. Options are
        written with "__" for the dot; None leaves one of the defaults out."""
        merged = {"run.dir": self.folder / run_name, "data.train": self.data, "parallel.tensor": tensor, **MODEL, **TRAIN}
        merged.update({key.replace("__", "."): value for key, value in options.items()})
        if inject:
            merged["inject"] = ";".join(inject)
        merged = {key: value for key, value in merged.items() if value is not None}
        return mpirun(ranks) + [PROGRAM, "train"] + arguments(merged)

    def train(self, run_name, code=OK, **options):
        result = run(*self.command(run_name, **options))
        self.assertEqual(result.code, code, result)
        return result

    def refuse(self, run_name, pattern, code=USAGE, **options):
        """A job that ends itself with `code` and exactly one line of ours, which matches `pattern`."""
        # The line is there before mpirun is asked to end the other ranks, so it need not give them a second to speak.
        result = run(*self.command(run_name, **options), env={**os.environ, "OMPI_MCA_odls_base_sigkill_timeout": "0"})
        self.assertEqual((result.code, len(result.ours)), (code, 1), result)
        self.assertRegex(result.ours[0], pattern)
        return result

    def start(self, run_name, **options):
        """A job in the background, for signals; `finish` waits for its end."""
        process = subprocess.Popen([str(word) for word in self.command(run_name, **options)], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        return process

    def finish(self, process):
        out, err = process.communicate(timeout=LIMIT_SECONDS)
        return Result(process.returncode, out, err)

    def wait_for_step(self, process):
        """Returns when the job has printed its first step."""
        for line in process.stdout:
            if line.startswith("step  "):
                return
        self.fail("the job ended before its first step:\n" + process.stderr.read())

    def reference(self):
        """The name of a finished run on two ranks with a checkpoint at every second step."""
        if not (self.folder / "reference").exists():
            self.train("reference", ranks=2)
        return "reference"

    def copy(self, source, target, step=STEPS):
        """A run directory as it was when the checkpoint of `step` had been written."""
        shutil.copytree(self.folder / source, self.folder / target)
        for path in (self.folder / target / "checkpoints").glob("step_*"):
            if path.name > f"step_{step:08}":
                shutil.rmtree(path)
        (self.folder / target / "checkpoints" / "latest").unlink()  # it names a later one; resuming does not need it
        metrics = self.folder / target / "metrics.jsonl"
        kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
        metrics.write_text("".join(line + "\n" for line in kept))

    def events(self, run_name, kind=None):
        lines = (self.folder / run_name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    def trace(self, run_name):
        """{step: (loss, norm, learning rate)} as the run finally took it: a repeated step replaces the first try."""
        return {event["step"]: (event["loss"], event["grad_norm"], event["lr"]) for event in self.events(run_name, "step")}

    def checkpoints(self, run_name):
        """Everything that lies in the checkpoint folder, by name."""
        return sorted(os.listdir(self.folder / run_name / "checkpoints"))

    def checkpoint(self, run_name, step):
        return self.folder / run_name / "checkpoints" / f"step_{step:08}"

    def record(self, run_name, step):
        """The trainer's record in a checkpoint's manifest."""
        return json.loads((self.checkpoint(run_name, step) / "manifest.json").read_text())["body"]["metadata"]

    def shards(self, run_name, step):
        return {path.name: path.read_bytes() for path in self.checkpoint(run_name, step).glob("*.safetensors")}

    def assert_same_run(self, one, other, step=STEPS):
        """Both runs took the same steps with the same numbers to the last bit, and ended in the same bytes."""
        self.assertEqual(self.trace(one), self.trace(other))
        self.assertEqual(self.shards(one, step), self.shards(other, step))
        self.assertEqual(self.record(one, step)["data_state"], self.record(other, step)["data_state"])

    def assert_close_run(self, one, other, step=STEPS, delta=2e-5):
        """The same steps on the same tokens, with losses that differ by no more than `delta`: the order of sums."""
        first, second = self.trace(one), self.trace(other)
        self.assertEqual(first.keys(), second.keys())
        for at, (loss, _, rate) in first.items():
            self.assertAlmostEqual(loss, second[at][0], delta=delta, msg=f"{one} and {other}, step {at}")
            self.assertEqual(rate, second[at][2])
        self.assertEqual(self.record(one, step)["data_state"], self.record(other, step)["data_state"])

    def flip(self, path, at=None):
        """One bit of a file, in its middle unless said otherwise."""
        at = path.stat().st_size // 2 if at is None else at
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))


def fault(rank, step, point, what):
    return f"rank={rank},step={step},point={point},fault={what}"


def ranks_of(process):
    """Process ids of the job's ranks: the children of mpirun that run the program."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in pids if re.search("densemamba", Path(f"/proc/{pid}/comm").read_text())]


def send(pid, number):
    os.kill(pid, number)


SIGUSR1, SIGTERM = signal.SIGUSR1, signal.SIGTERM
main = unittest.main
