#!/usr/bin/env python3
"""Fails on an include that is not an arrow of the architecture, on third-party headers where they may not be, and on a
source file whose first line does not say what it is.

    tests/include_directions_test.py [ROOT]

The tests of the checks themselves run first, on made-up files.
"""
import os
import re
import sys

ROOMS = {
    "runtime": {"runtime"},
    "kernels": {"kernels", "runtime"},
    "parallel": {"parallel", "runtime"},
    "dataloader": {"dataloader", "runtime"},
    "model": {"model", "parallel", "kernels", "runtime"},
    "launch": {"launch", "model", "parallel", "kernels", "dataloader", "runtime"},
}
SOURCES = (".h", ".cpp", ".cu", ".cuh")
SCRIPTS = (".py", ".sh")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')
# Headers of CUDA and of its libraries, and the places that may know them.
CUDA = re.compile(r"^(cuda|cub/|cublas|curand|cusparse|cutlass/|cute/|mma\.h|nvtx|nccl|thrust/|cooperative_groups|device_launch)")
CUDA_PLACES = ("runtime/cuda/", "kernels/cuda/", "parallel/cuda/")


def is_third_party(header):
    """Standard C++ headers have neither a folder nor an extension; of C's we know the names."""
    if re.fullmatch(r"[a-z_0-9]+", header):
        return False
    return header not in {"stdint.h", "stddef.h", "stdlib.h", "string.h", "math.h", "immintrin.h"}


def first_sentence(path, lines):
    """What is wrong with the opening of a file, or None."""
    if path.endswith(SCRIPTS):
        opening = [line for line in lines[:2] if not line.startswith("#!")][:1]
        return None if opening and re.match(r'(# |""")\S.*', opening[0]) else "it does not open with what the file is"
    comment = []
    for line in lines:
        if not line.startswith("// "):
            break
        comment.append(line[3:])
    text = " ".join(comment)
    return None if re.match(r"\S.{10,}[.:;?!]( |$)", text) else "its first line is not a sentence in a // comment"


def check(path, text):
    """What is wrong with the file, as sentences."""
    lines = text.splitlines()
    problems = []
    problem = first_sentence(path, lines)
    if problem:
        problems.append(f"{path}:1: {problem}")
    room = path.split("/")[0]
    for number, line in enumerate(lines, 1):
        include = INCLUDE.match(line)
        if not include or not path.endswith(SOURCES):
            continue
        quoted, header = include[1] == '"', include[2]
        where = f"{path}:{number}: "
        if CUDA.match(header) and room != "tests" and not path.startswith(CUDA_PLACES):
            problems.append(f"{where}{header} may be included in {', '.join(CUDA_PLACES)} only")
        if quoted and room in ROOMS:
            target = header.split("/")[0]
            if "/" not in header:
                problems.append(f'{where}"{header}" is not a path from the root')
            elif target not in ROOMS[room]:
                problems.append(f"{where}{room} may not include {header}; it knows {', '.join(sorted(ROOMS[room]))}")
        kernel_contract = path.startswith("kernels/") and (path.endswith(".cu") or (path.endswith(".h") and "/" not in path[8:]))
        if kernel_contract and not quoted and is_third_party(header) and not CUDA.match(header):
            problems.append(f"{where}<{header}> is third-party, which neither a kernel's header nor a .cu file includes")
    return problems


def check_the_checks():
    """Every rule finds its offender and passes its neighbour."""
    sentence = "// What this file is, in one sentence.\n"
    good = [
        ("runtime/a.h", sentence + '#include "runtime/b.h"\n#include <vector>\n'),
        ("launch/a.cpp", sentence + '#include "dataloader/b.h"\n#include <mpi.h>\n'),
        ("model/a.cpp", sentence + '#include "kernels/b.h"\n#include <fmt/format.h>\n'),
        ("kernels/cuda/a.cu", sentence + '#include <cuda_runtime.h>\n#include <cub/cub.cuh>\n'),
        ("kernels/cpu/a.cpp", sentence + "#include <cblas.h>\n"),
        ("parallel/cuda/nccl_communicator.cpp", sentence + "#include <nccl.h>\n"),
        ("tests/kernels/a_test.cpp", sentence + "#include <gtest/gtest.h>\n"),
        ("launch/a.sh", "#!/usr/bin/env bash\n# What this script does.\n"),
    ]
    bad = [
        ("runtime/a.h", sentence + '#include "kernels/b.h"\n'),
        ("kernels/a.cpp", sentence + '#include "parallel/b.h"\n'),
        ("parallel/a.cpp", sentence + '#include "model/b.h"\n'),
        ("dataloader/a.h", sentence + '  #  include "parallel/b.h"\n'),
        ("model/a.cpp", sentence + '#include "launch/b.h"\n'),
        ("model/a.cpp", sentence + '#include "dataloader/b.h"\n'),
        ("model/a.cpp", sentence + '#include "b.h"\n'),
        ("kernels/a.h", sentence + "#include <fmt/format.h>\n"),
        ("kernels/cuda/a.cu", sentence + "#include <fmt/format.h>\n"),
        ("parallel/grid.cpp", sentence + "#include <cuda_runtime.h>\n"),
        ("launch/a.cpp", sentence + "#include <nccl.h>\n"),
        ("runtime/a.h", "#pragma once\n"),
        ("launch/a.sh", "#!/usr/bin/env bash\nset -eu\n"),
    ]
    for path, text in good:
        assert not check(path, text), check(path, text)
    for path, text in bad:
        assert check(path, text), f"nothing found in {path}:\n{text}"


def main():
    check_the_checks()
    root = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SOURCE_DIR") or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    problems, count = [], 0
    for top in [*ROOMS, "tests"]:
        for folder, _, names in sorted(os.walk(os.path.join(root, top))):
            for name in sorted(names):
                if not name.endswith(SOURCES + SCRIPTS):
                    continue
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as file:
                    problems += check(os.path.relpath(path, root), file.read())
                count += 1
    print(*problems, f"{count} files read, {len(problems)} problems", sep="\n")
    return 1 if problems or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
