#!/usr/bin/python3
"""Makes and checks golden files: small DenseMamba models with their logits, loss, gradients and recurrent logits.

The model is written as the paper writes it, in float64, with every hidden state stored and PyTorch's own differentiation: slow, and
independent of the trainer's recomputed scans and hand-written backward. Debian: apt-get install python3-torch python3-numpy.

    golden.py make OUT.safetensors [--seed S] [--layers L] [--d_model C] [--dense_depth M] ...
    golden.py check FILE...     recomputes every result from the weights and tokens in each file

A file holds the weights by checkpoint name, "tokens", "targets", "logits", "loss", "recurrent_logits" and "grad.<name>";
the sizes stand in its metadata.
"""
import argparse
import json
import math
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {"F32": np.float32, "I32": np.int32}
DEFAULTS = dict(layers=4, d_model=32, d_state=16, d_conv=4, vocab=96, gate_rank=8, dense_depth=2, batch=2, seq=40)


def read_file(path):
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    sizes = {key: int(value) for key, value in header.pop("__metadata__").items()}
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, sizes


def write_file(path, arrays, sizes):
    header, payload = {"__metadata__": {key: str(value) for key, value in sizes.items()}}, b""
    for name, array in arrays.items():
        blob = np.ascontiguousarray(array).tobytes()
        kind = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(payload), len(payload) + len(blob)]}
        payload += blob
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + payload)


def draw_weights(sizes, rng):
    """Weights of the order of trained ones; the dense gate is not zero, so that every path matters."""
    C, D, N, R, W, G = (sizes[key] for key in ("d_model", "d_inner", "d_state", "dt_rank", "d_conv", "gate_rank"))

    def uniform(*shape, bound=1.0, middle=0.0):
        return middle + bound * rng.uniform(-1, 1, shape)

    weights = {"backbone.embedding.weight": 0.3 * rng.standard_normal((sizes["vocab"], C))}
    for layer in range(sizes["layers"]):
        block = f"backbone.layers.{layer}."
        mixer = block + "mixer."
        step = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), D))
        weights[block + "norm.weight"] = uniform(C, bound=0.2, middle=1)
        weights[mixer + "in_proj.weight"] = uniform(2 * D, C, bound=1.7 / math.sqrt(C))
        weights[mixer + "conv1d.weight"] = uniform(D, 1, W, bound=0.7)
        weights[mixer + "conv1d.bias"] = uniform(D, bound=0.3)
        weights[mixer + "x_proj.weight"] = uniform(R + 2 * N, D, bound=1.7 / math.sqrt(D))
        weights[mixer + "dt_proj.weight"] = uniform(D, R, bound=1 / math.sqrt(R))
        weights[mixer + "dt_proj.bias"] = step + np.log(-np.expm1(-step))
        weights[mixer + "A_log"] = np.log(np.arange(1, N + 1)) + uniform(D, N, bound=0.2)
        weights[mixer + "D"] = uniform(D, bound=0.5, middle=1)
        weights[mixer + "out_proj.weight"] = uniform(C, D, bound=1 / math.sqrt(D))
        if layer > 0 and sizes["dense_depth"] > 0:
            weights[mixer + "dense_gate.fc1.weight"] = uniform(G, C, bound=1.7 / math.sqrt(C))
            weights[mixer + "dense_gate.fc2.weight"] = uniform(D, G, bound=1.7 / math.sqrt(G))
    weights["backbone.norm_f.weight"] = uniform(C, bound=0.2, middle=1)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


class Layer:
    """One layer that can be fed piece by piece: it keeps the convolution's last inputs and its last hidden state."""

    def __init__(self, weights, sizes, index):
        prefix = f"backbone.layers.{index}."
        self.w = {name[len(prefix) :].replace("mixer.", ""): value for name, value in weights.items() if name.startswith(prefix)}
        self.sizes, self.inputs, self.state = sizes, None, None

    def __call__(self, residual, lower_states):
        """Returns the new residual stream and all hidden states [B, T, D, N]; lower_states are those of the layers it reads."""
        w, s = self.w, self.sizes
        batch, tokens, _ = residual.shape
        x = rms_norm(residual, w["norm.weight"])
        xh, z = torch.split(x @ w["in_proj.weight"].T, s["d_inner"], -1)
        if self.inputs is None:
            self.inputs = xh.new_zeros(batch, s["d_conv"] - 1, s["d_inner"])
            self.state = xh.new_zeros(batch, s["d_inner"], s["d_state"])
        window = torch.cat([self.inputs, xh], 1)
        self.inputs = window[:, tokens:]
        taps = sum(window[:, k : k + tokens] * w["conv1d.weight"][:, 0, k] for k in range(s["d_conv"]))
        u = F.silu(taps + w["conv1d.bias"])
        delta, B, C = torch.split(u @ w["x_proj.weight"].T, [s["dt_rank"], s["d_state"], s["d_state"]], -1)
        delta = F.softplus(delta @ w["dt_proj.weight"].T + w["dt_proj.bias"])
        decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(w["A_log"]))
        drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
        states = []
        for t in range(tokens):
            self.state = decay[:, t] * self.state + drive[:, t]
            states.append(self.state)
        states = torch.stack(states, 1)
        y = (states * C.unsqueeze(2)).sum(-1) + w["D"] * u
        if lower_states:
            gate = F.silu(F.silu(x @ w["dense_gate.fc1.weight"].T) @ w["dense_gate.fc2.weight"].T)
            y = y + gate * (sum(lower_states) * C.unsqueeze(2)).sum(-1)
        return residual + (y * F.silu(z)) @ w["out_proj.weight"].T, states


class Model:
    def __init__(self, weights, sizes):
        self.weights, self.depth = weights, sizes["dense_depth"]
        self.layers = [Layer(weights, sizes, index) for index in range(sizes["layers"])]

    def __call__(self, tokens):
        """tokens [B, T] → logits [B, T, V]; continues from the tokens of earlier calls."""
        table = self.weights["backbone.embedding.weight"]
        residual, history = table[tokens], []
        for index, layer in enumerate(self.layers):
            residual, states = layer(residual, history[max(0, index - self.depth) : index])
            history.append(states)
        return rms_norm(residual, self.weights["backbone.norm_f.weight"]) @ table.T


def results(weights, tokens, targets, sizes):
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in weights.items()}
    ids, wanted = (torch.tensor(array.astype(np.int64)) for array in (tokens, targets))
    logits = Model(leaves, sizes)(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    loss.backward()
    with torch.no_grad():
        recurrent = Model(leaves, sizes)
        pieces = torch.cat([recurrent(ids[:, t : t + 1]) for t in range(ids.shape[1])], 1)
    found = {"logits": logits.detach(), "loss": loss.detach().reshape(1), "recurrent_logits": pieces}
    found.update({"grad." + name: leaf.grad for name, leaf in leaves.items()})
    return {name: value.numpy().astype(np.float32) for name, value in found.items()}


def make(options):
    sizes = {key: getattr(options, key) for key in DEFAULTS}
    sizes["d_inner"] = 2 * sizes["d_model"]
    sizes["dt_rank"] = -(-sizes["d_model"] // 16)
    rng = np.random.default_rng(options.seed)
    weights = draw_weights(sizes, rng)
    text = rng.integers(0, sizes["vocab"], (sizes["batch"], sizes["seq"] + 1)).astype(np.int32)
    arrays = {**weights, "tokens": text[:, :-1], "targets": text[:, 1:]}
    arrays.update(results(weights, arrays["tokens"], arrays["targets"], sizes))
    write_file(options.path, arrays, sizes)
    print(f"{options.path}: loss {arrays['loss'][0]:.6f}")


def check(paths):
    good = True
    for path in paths:
        arrays, sizes = read_file(path)
        known = ("tokens", "targets", "logits", "loss", "recurrent_logits")
        weights = {name: value for name, value in arrays.items() if name not in known and not name.startswith("grad.")}
        worst = 0.0
        for name, value in results(weights, arrays["tokens"], arrays["targets"], sizes).items():
            norm = np.linalg.norm(arrays[name].astype(np.float64))
            error = np.linalg.norm(value.astype(np.float64) - arrays[name]) / (norm if norm > 0 else 1.0)
            worst = max(worst, error)
        good = good and worst < 1e-6
        print(f"{'ok' if worst < 1e-6 else 'FAIL'} {path}: worst relative difference {worst:.1e}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("path")
    maker.add_argument("--seed", type=int, default=1)
    for key, value in DEFAULTS.items():
        maker.add_argument("--" + key, type=int, default=value)
    checker = commands.add_parser("check")
    checker.add_argument("paths", nargs="+")
    options = parser.parse_args()
    if options.command == "make":
        make(options)
    elif not check(options.paths):
        sys.exit(1)


if __name__ == "__main__":
    main()
