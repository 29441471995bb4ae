#!/usr/bin/env python3
"""Makes one rank of a job sick in each way that there is: the job must end by itself, and name that rank once."""

import os
import re
import subprocess
import sys
import tempfile

PROGRAM = os.path.join(os.environ["BUILD_DIR"], "watchdog_mpi_test")
LIMIT_SECONDS = 60  # a job that is still there has not been ended by its watchdog

RANK_1 = r"^culprit: rank 1 \(\S+\) "
KILLED_BY_MPIRUN = 137  # mpirun's own exit code is that of the first process that died: 128 + SIGKILL

# fault: (exit code, what stderr must say, how many tables)
FAULTS = {
    "Hang": (75, RANK_1 + r"never entered collective \d+ .*: it left collective .*, step 3, phase backward$", 1),
    "Kill": (KILLED_BY_MPIRUN, RANK_1 + r"died after collective \d+ .* step 3, phase reduce", 1),
    "KillWhileOthersCompute": (KILLED_BY_MPIRUN, RANK_1 + "died after collective", 1),
    "Stop": (75, RANK_1 + "gave no sign of life", 1),
    "OtherOrder": (75, "^culprit: .*rank 1 .* is inside collective .*barrier of group world", 1),
    "Error": (1, "^main: rank 1 found something wrong", 0),
    "ErrorThatHangs": (75, "^main: rank 1 found something wrong", 0),
    "EarlyEnd": (75, RANK_1 + "ended after collective", 1),
}


def run(fault, ranks, directory):
    command = ["mpirun", "--oversubscribe", "-n", str(ranks), PROGRAM, "--gtest_also_run_disabled_tests",
               "--gtest_filter=WatchdogFaults.DISABLED_" + fault]
    environment = dict(os.environ, WATCHDOG_DIR=directory)
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          timeout=LIMIT_SECONDS, check=False)


def main():
    failures = 0
    for fault, (code, pattern, tables) in FAULTS.items():
        with tempfile.TemporaryDirectory() as directory:
            result = run(fault, 4 if fault in ("Hang", "Kill") else 2, directory)
        problems = []
        if result.returncode != code:
            problems.append(f"exit code {result.returncode} instead of {code}")
        if not re.search(pattern, result.stderr, re.MULTILINE):
            problems.append(f"stderr does not match {pattern!r}")
        if result.stderr.count("watchdog: ") != tables:
            problems.append(f"{result.stderr.count('watchdog: ')} tables instead of {tables}")
        print(f"{fault}: {'; '.join(problems) or 'ok'}", flush=True)
        if problems:
            print(result.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
