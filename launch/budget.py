#!/usr/bin/env python3
"""Where the time of an optimizer step goes: every op with its calls, time and floor, and their sum against the measured step.

    launch/budget.py --config mamba-370m --batch 16 --seq 2048 [OPTION...]     on one GPU, or on one CPU rank

Runs `densemamba bench-step` and `densemamba bench-kernels` at the shapes of one micro-batch and prints a Markdown table. OPTIONS go to
bench-step, e.g. --train.micro_batch 8 --train.recompute block. An op's floor is the longest of its bytes at the copy rate, its operations at
the rate of matrix products and its exponentials at theirs, each measured in the same run. Time that no op explains is printed: launches,
waits, and what bench-kernels has no row for.

A large GPU runs whole steps at its limit of power, with clocks below those of an op that is timed alone. --seconds 1 times each op for so long
without pause and adds its energy, whose sum stands against that of the measured step.
"""

import argparse
import json
import os
import subprocess
import sys


def run(program, *words):
    """The JSON lines that the program prints."""
    done = subprocess.run([program, *map(str, words)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)  # the program has said why
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def calls_of(step):
    """Op → how often a step of this model calls it at the shapes of one micro-batch. Scans count the layer's sources."""
    layers, depth, micros = step["layers"], step["dense_depth"], step["batch"] // step["micro_batch"]
    again = {"none": (), "selective": ("dt", "gate"), "block": ("dt", "gate", "in")}[step["recompute"]]
    calls = {}

    def add(op, count):
        calls[op] = calls.get(op, 0) + count * micros

    def product(name, count, repeated=False, input_too=True):
        add(f"{name} forward", count * (2 if repeated else 1))
        if input_too:
            add(f"{name} backward input", count)
        add(f"{name} backward weight", count)

    add("embedding forward", 1)
    add("embedding backward", 1)
    add("rmsnorm forward", layers + 1)
    add("rmsnorm backward", layers + 1)
    product("in_proj whole", layers, "in" in again)
    add("conv forward", layers * (2 if "dt" in again else 1))
    add("conv backward", layers)
    product("x_proj", layers, input_too=False)  # conv backward does the rest
    product("dt_proj", layers, "dt" in again)
    if step["dtype"] != "float32":
        add("convert", layers * (2 if "dt" in again else 1))
    for layer in range(layers):
        sources = min(layer, depth)
        add(f"scan forward, {sources} sources", 1)
        add(f"scan backward, {sources} sources", 1)
    if depth > 0:
        product("gate fc1", layers - 1, "gate" in again)
        product("gate fc2", layers - 1, "gate" in again)
    product("out_proj", layers)
    tokens, chunk = step["micro_batch"] * step["sequence"], step["loss_chunk"]
    product("head", tokens / chunk)
    add("cross-entropy stats", tokens / chunk)
    add("cross-entropy finish", tokens / chunk)
    for op in ("adamw", "sum of squares"):  # over all parameters, whatever the number of micro-batches
        calls[op] = step["parameters"] / step["bench_parameters"]
    return calls


def floor_ms(row, ceilings):
    rates = (("bytes", "copy_bytes_per_second"), ("flops", "product_flops_per_second"),
             ("exponentials", "exponentials_per_second"))
    return 1e3 * max(row[work] / ceilings[rate] for work, rate in rates if ceilings[rate] > 0)


def print_table(step, ceilings, rows):
    print(f"{step['device']}; {step['build']}\n")
    print(f"{step['layers']} layers, width {step['d_model']}, dense depth {step['dense_depth']}, batch {step['batch']} in micro-batches of "
          f"{step['micro_batch']}, sequence {step['sequence']}, recompute {step['recompute']}, {step['dtype']}\n")
    energy = "watts" in step and any("joules" in row for row in rows.values())

    def line(*cells, joules):
        print("| " + " | ".join([*cells, joules] if energy else cells) + " |")

    line("op", "calls", "ms each", "ms a step", "floor ms a step", "share", joules="J a step")
    print("|" + "---|" * (7 if energy else 6))
    total = floor_total = joules_total = 0.0
    for op, calls in calls_of(step).items():
        row = rows.get(op)
        if row is None:
            sys.exit(f"bench-kernels has no row {op!r}")
        ms, floor, joules = calls * row["ms"], calls * floor_ms(row, ceilings), calls * row.get("joules", 0)
        total, floor_total, joules_total = total + ms, floor_total + floor, joules_total + joules
        line(op, f"{calls:.4g}", f"{row['ms']:.4f}", f"{ms:.2f}", f"{floor:.2f}", f"{100 * floor / ms:.0f} %", joules=f"{joules:.2f}")
    spent = 1e-3 * step["ms"] * step.get("watts", 0)
    line("**sum**", "", "", f"**{total:.2f}**", f"**{floor_total:.2f}**", f"{100 * floor_total / total:.0f} %", joules=f"**{joules_total:.1f}**")
    line("measured step", "", "", f"{step['ms']:.2f} ({step['ms_min']:.1f}–{step['ms_max']:.1f})", "", "", joules=f"{spent:.1f}")
    line("unexplained", "", "", f"{step['ms'] - total:.2f}", "", "", joules=f"{spent - joules_total:.1f}")
    print(f"\n{step['tokens_per_second']:.0f} tokens/s; at the floors {1e3 * step['batch'] * step['sequence'] / floor_total:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/densemamba", help="the densemamba executable (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=20, help="timed steps and calls (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0, help="time each op for so long without pause, and its energy (%(default)s)")
    arguments, options = parser.parse_known_args()
    if not os.access(arguments.program, os.X_OK):
        sys.exit(f"{arguments.program} is no program; build it, or name it with --program")
    step = run(arguments.program, "bench-step", "--run.device", arguments.device, "--repeats", arguments.repeats, *options)[-1]
    step["loss_chunk"] = min(step["loss_chunk"], step["micro_batch"] * step["sequence"])
    step["bench_parameters"] = min(step["parameters"], 64 << 20)
    ceilings, *rows = run(arguments.program, "bench-kernels", "--json", "true", "--run.device", arguments.device, "--batch",
                          step["micro_batch"], "--sequence", step["sequence"], "--d_model", step["d_model"], "--vocabulary",
                          step["vocabulary"], "--dense_depth", step["dense_depth"], "--loss_chunk", step["loss_chunk"],
                          "--parameters", step["bench_parameters"], "--repeats", arguments.repeats, "--seconds", arguments.seconds)
    print_table(step, ceilings, {row["op"]: row for row in rows})


if __name__ == "__main__":
    main()
