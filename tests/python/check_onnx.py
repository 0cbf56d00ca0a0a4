"""What onnx and onnxruntime make of the folder that export_onnx writes: one row a check, non-zero if one fails.

    check_onnx.py DIR [--large]
    check_onnx.py DIR --self-test      whether the checks notice what they are for

DIR is what `cargo run --release -p emoji_lab --example export_onnx -- MODEL DIR --logits 200` writes: the
model in every variant, and in `ours.json` and `ours.safetensors` what this crate computes. With --large, of a
model whose logits are not there, only losses and answers are compared, the table of sizes is printed, and the
greedy answers of every variant come to lie in `answers.json`, for the example judge_answers.
"""

import argparse
import functools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

from need import Failed, need
from onnx_files import FILES, constant, of_all_tokens, open_graph, path_of, tensors, unpacked

# f32 sums in another order.
LOGITS = 1e-4
# Losses, in nats per token: f32, and what the rounding of weights may cost.
LOSS = {"fp32": 1e-3, "q8": 0.03, "q4": 0.25}
# Two likeliest tokens that are nearer than this may change places in another order of sums.
NEAR = 1e-3
# The longest answer that export_onnx writes, in tokens.
LONGEST = 24


def golden(root):
    ours = load_file(root / "ours.safetensors")
    return ours["ids"], ours["logits"]


def rows_of(root):
    return json.loads((root / "ours.json").read_text())["rows"]


def within(error, bound):
    need(np.isfinite(error) and error <= bound, f"differs by {error:.1e}, {bound:g} is allowed")
    return f"{error:.1e}", f"{bound:g}"


def worst(got, want):
    need(got.shape == want.shape, f"shape {got.shape}, ours {want.shape}")
    return float(np.abs(got - want).max())


def check_form(root, variant):
    """onnx's own checker; and each tensor lies within its file."""
    path = path_of(root, variant)
    onnx.checker.check_model(str(path), full_check=False)
    graph = onnx.load(path, load_external_data=False).graph
    size = (path.parent / (path.name + "_data")).stat().st_size
    ends = []
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            ends.append(int(place["offset"]) + int(place["length"]))
    need(max(ends) == size, f"the last tensor ends at {max(ends)}, the file at {size}")
    return f"{len(graph.node)} nodes, {len(graph.initializer)} tensors", "exact"


def check_prefill(root, variant):
    ids, want = golden(root)
    session = open_graph(path_of(root, variant))
    errors = []
    for count in [1, 2, 63, 64, 65, 66, 128, 129, len(ids)]:
        logits, _ = session.run([ids[:count]])
        errors.append(worst(logits[0], want[count - 1 : count]))
    return within(max(errors), LOGITS)


def check_steps(root, variant):
    """Token by token, past the window of the sliding layers."""
    ids, want = golden(root)
    session, past, errors = open_graph(path_of(root, variant)), None, []
    for at, id in enumerate(ids):
        logits, past = session.run([[id]], past=past)
        errors.append(worst(logits[0], want[at : at + 1]))
    return within(max(errors), LOGITS)


def check_pieces(root, variant):
    """Several tokens at a time on what is in the cache already."""
    ids, want = golden(root)
    session, past, at, errors = open_graph(path_of(root, variant)), None, 0, []
    for count in [40, 1, 50, 7, len(ids) - 98]:
        logits, past = session.run([ids[at : at + count]], past=past)
        at += count
        errors.append(worst(logits[0], want[at - 1 : at]))
    return within(max(errors), LOGITS)


def check_rows(root, variant):
    """Rows of one length side by side: each as if it were alone."""
    ids, want = golden(root)
    session, count = open_graph(path_of(root, variant)), 100
    logits, past = session.run([ids[:count], ids[::-1][:count], ids[:count]])
    after, _ = session.run([ids[count : count + 1]] * 3, past=past)
    errors = [worst(logits[row], want[count - 1 : count]) for row in (0, 2)]
    errors += [worst(after[row], want[count : count + 1]) for row in (0, 2)]
    need(worst(logits[1], logits[0]) > 0.1, "another row has the same logits")
    return within(max(errors), LOGITS)


def is_table(name):
    """Embedding and head are stored row by row, the other matrices turned."""
    return name.startswith(("model.embed_tokens", "lm_head"))


def check_weights(root, variant):
    """Each value of a matrix in blocks is within half a step of the one in fp32."""
    exact, found, worst_share = tensors(path_of(root, "fp32")), tensors(path_of(root, variant)), 0.0
    names = [name for name in exact if f"{name}.q" in found]
    need(len(names) > 7, f"only {names} are in blocks")
    for name in names:
        got, scales = unpacked(found, name)
        want = exact[name] if is_table(name) else exact[name].T
        need(got.shape == want.shape, f"{name} has shape {got.shape}, not {want.shape}")
        steps = np.repeat(scales, 32, axis=1)
        share = np.abs(got - want) / np.where(steps == 0, 1, steps)
        worst_share = max(worst_share, float(share.max()))
    need(worst_share <= 0.501, f"a value is {worst_share:.3f} of a step away")
    return f"{worst_share:.4f} of a step", "0.5 of a step"


def check_blocks(root, variant):
    """The graph computes with the values that its blocks stand for: those of the fp32 graph in its place."""
    found = tensors(path_of(root, variant))
    ids, _ = golden(root)
    got, _ = open_graph(path_of(root, variant), of_all_tokens).run([ids])

    def unpack(graph):
        of_all_tokens(graph)
        for tensor in graph.initializer:
            if f"{tensor.name}.q" in found:
                values, _ = unpacked(found, tensor.name)
                turned = values if is_table(tensor.name) else values.T
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))

    want, _ = open_graph(path_of(root, "fp32"), unpack).run([ids])
    return within(worst(got, want), 20 * LOGITS)


@functools.cache
def losses(root, variant):
    """The mean loss of each row's tokens after the first, and how long the rows took."""
    session = open_graph(path_of(root, variant), of_all_tokens)
    found, started = [], time.monotonic()
    for row in rows_of(root):
        logits = session.run([row["ids"]])[0][0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), row["ids"][1:]]
        found.append(float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen)))
    return found, time.monotonic() - started


def check_losses(root, variant):
    ours = [row["loss"] for row in rows_of(root)]
    theirs, _ = losses(root, variant)
    apart = float(np.abs(np.subtract(theirs, ours)).mean())
    return within(apart, LOSS[variant])


@functools.cache
def answers(root, variant):
    """Greedy answers to the rows, of at most LONGEST tokens, each with the token that ends it."""
    session = open_graph(path_of(root, variant))
    stop = json.loads((root / "config.json").read_text())["eos_token_id"]
    return [session.greedy(row["prompt"], stop, LONGEST) for row in rows_of(root)]


def check_answers(root, variant):
    """Where a greedy answer parts from ours, our two likeliest tokens were near each other there."""
    rows, equal, wrong = rows_of(root), 0, []
    for index, (row, theirs) in enumerate(zip(rows, answers(root, variant))):
        ours, margins = row["answer"]["ids"], row["answer"]["margins"]
        at = next((at for at, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
        if at is None:
            need(len(ours) == len(theirs), f"row {index}: {len(theirs)} tokens, ours {len(ours)}")
        equal += at is None
        if at is not None and margins[at] >= NEAR:
            wrong.append(f"row {index}, token {at}: margin {margins[at]:.4f}")
    need(not wrong, "; ".join(wrong[:3]))
    return f"{equal} of {len(rows)}", "near ties"


QUANTISED = ["q8", "q4"]
CHECKS = [
    ("form", check_form, list(FILES)),
    ("logits of a prompt", check_prefill, ["fp32"]),
    ("logits token by token", check_steps, ["fp32"]),
    ("logits in pieces", check_pieces, ["fp32"]),
    ("logits of rows side by side", check_rows, ["fp32"]),
    ("weights in blocks", check_weights, QUANTISED),
    ("products with blocks", check_blocks, QUANTISED),
    ("losses", check_losses, list(FILES)),
    ("greedy answers", check_answers, ["fp32"]),
]
# What rounding costs another model's losses is told, not judged: one that learnt from answers alone is sure of nothing
# that a prompt says.
LARGE = [*(("form", variant) for variant in FILES), ("losses", "fp32"), ("greedy answers", "fp32")]


def run_checks(root, only=None, large=False):
    """Every check, or the one titled `only`, as (title, verdict, measured, tolerance or reason)."""
    found = []
    for name, check, variants in CHECKS:
        for variant in variants:
            title = f"{name}, {variant}"
            if only not in (None, title) or (large and (name, variant) not in LARGE):
                continue
            try:
                found.append((title, "ok", *check(root, variant)))
            except Failed as short:
                found.append((title, "FAIL", "", str(short)))
            except Exception as error:  # a library refusing a file is a failed check, not a crash
                found.append((title, "FAIL", "", " ".join(f"{type(error).__name__}: {error}".split())[:300]))
    return found


def print_table(rows, head):
    rows = [head, *rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(head))]
    for i, row in enumerate(rows):
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def print_sizes(root):
    """What each variant takes, and what its rounding costs."""
    rows = rows_of(root)
    ours = [row["loss"] for row in rows]
    table = []
    for variant in FILES:
        path = path_of(root, variant)
        theirs, seconds = losses(root, variant)
        size = path.stat().st_size + (path.parent / (path.name + "_data")).stat().st_size
        apart = np.subtract(theirs, ours)
        table.append((variant, f"{size:,}", f"{np.mean(theirs):.4f}", f"{apart.mean():+.4f}", f"{np.abs(apart).mean():.4f}", f"{seconds:.1f}"))
    print(f"\n{len(rows)} rows, our mean loss {np.mean(ours):.4f}")
    print_table(table, ("dtype", "bytes", "mean loss", "difference", "mean difference of a row", "seconds"))


def change_graph(variant, change):
    def spoil(root):
        path = path_of(root, variant)
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        path.write_bytes(model.SerializeToString())

    return spoil


def window(tokens):
    """Other windows than the sliding layers' own, 64."""

    def change(graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "local_window_size" and attribute.i == 64:
                    attribute.i = tokens

    return change


def without_zeros(graph):
    """As if the zero points were in the middle."""
    for node in graph.node:
        if node.op_type == "MatMulNBits" and node.input[-1].endswith(".zeros"):
            node.input.pop()


def scaled(name, factor):
    def change(graph):
        tensor = constant(graph, name)
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def change_data(variant, name, change):
    """Changes the bytes of a tensor in the file of weights."""

    def spoil(root):
        path = path_of(root, variant)
        tensor = constant(onnx.load(path, load_external_data=False).graph, name)
        place = {entry.key: entry.value for entry in tensor.external_data}
        data = path.parent / place["location"]
        content = bytearray(data.read_bytes())
        at, count = int(place["offset"]), int(place["length"])
        content[at : at + count] = change(np.frombuffer(bytes(content[at : at + count]), np.uint8)).tobytes()
        data.write_bytes(content)

    return spoil


def change_ours(change):
    def spoil(root):
        path = root / "ours.json"
        ours = json.loads(path.read_text())
        change(ours["rows"])
        path.write_text(json.dumps(ours))

    return spoil


def other_answer(rows):
    answer = rows[3]["answer"]
    answer["ids"][0] += 1


def swap_nibbles(values):
    return values << 4 | values >> 4


UP = "model.layers.1.mlp.up_proj.weight"
SPOILED = [
    ("form, q4", lambda root: (root / "onnx" / "model_q4.onnx_data").write_bytes(b"cut")),
    ("form, fp32", change_graph("fp32", lambda graph: graph.node[3].output.append("again"))),
    # As if a sliding layer saw one token fewer, or one more, or all.
    ("logits token by token, fp32", change_graph("fp32", window(63))),
    ("logits of a prompt, fp32", change_graph("fp32", window(65))),
    ("logits in pieces, fp32", change_graph("fp32", window(-1))),
    # As if the norm's weight were without its one, or the embedding not scaled.
    ("logits of a prompt, fp32", change_graph("fp32", scaled("model.norm.weight", 1.001))),
    ("logits of a prompt, fp32", change_graph("fp32", scaled("embed.factor", 0.99))),
    ("logits of rows side by side, fp32", change_data("fp32", "rope.full.cos", lambda v: np.roll(v, 64))),
    ("logits token by token, fp32", change_data("fp32", "rope.sliding.sin", lambda v: np.roll(v, 64))),
    ("weights in blocks, q4", change_data("q4", f"{UP}.q", swap_nibbles)),
    ("weights in blocks, q4", change_data("q4", f"{UP}.zeros", swap_nibbles)),
    ("weights in blocks, q8", change_data("q8", f"{UP}.q", lambda v: v + np.uint8(1))),
    ("products with blocks, q4", change_graph("q4", without_zeros)),
    ("products with blocks, q4", change_graph("q4", scaled("embed.middle", 127 / 128))),
    ("products with blocks, q8", change_graph("q8", scaled("embed.factor", 1.01))),
    ("losses, fp32", change_ours(lambda rows: rows[0].update(loss=rows[0]["loss"] + 0.1))),
    ("losses, q8", change_graph("q8", scaled("embed.factor", 0.7))),
    ("losses, q4", change_graph("q4", scaled("embed.factor", 0.4))),
    ("greedy answers, fp32", change_ours(other_answer)),
]  # fmt: skip


def self_test(root):
    bad = 0
    for check, spoil in SPOILED:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            shutil.copytree(root, copy)
            spoil(copy)
            [row] = run_checks(copy, only=check)
        noticed = row[1] == "FAIL"
        bad += not noticed
        print(f"{'noticed' if noticed else 'MISSED '}  {check}: {row[3][:110]}")
    print(f"\n{'the checks can be trusted' if not bad else f'{bad} wrong'}")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    rows = run_checks(args.dir, large=args.large)
    print_table(rows, ("check", "", "measured", "tolerance"))
    bad = sum(row[1] != "ok" for row in rows)
    if args.self_test:
        return 1 if bad + self_test(args.dir) else 0
    if args.large:
        print_sizes(args.dir)
        found = {variant: answers(args.dir, variant) for variant in FILES}
        (args.dir / "answers.json").write_text(json.dumps(found))
    print(f"\n{len(rows) - bad} checks passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
