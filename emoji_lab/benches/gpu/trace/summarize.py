#!/usr/bin/env python3
"""summarize.py TRACE [--first KERNEL] [--show N]

What a trace (trace.c) says of a step: for every kernel what it adds to the way from a step's begin to its end (how much
later the last end so far is with it), how long it runs, how often. Then N kernels (60) of one step, from its first and
its third quarter, with their times. A step begins with the kernel whose name begins with KERNEL (embedding_forward); of
all steps those with the usual number of kernels are taken, and of these the middle half by length.
"""

import argparse
import collections
import re


def kernels(path):
    """Begin and end in ns, stream, blocks and name of every kernel, in order."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            begin, end, stream, blocks, name = line.split(None, 4)
            yield int(begin), int(end), int(stream), int(blocks), re.sub("<.*", "", name.strip())[:64]


def steps(rows, first):
    """The usual steps, from the shortest to the longest."""
    begins = [i for i, row in enumerate(rows) if row[4].startswith(first)]
    found = [rows[a:b] for a, b in zip(begins, begins[1:])]
    if not found:
        raise SystemExit(f"no two kernels begin with {first}: name another one with --first")
    usual = collections.Counter(len(step) for step in found).most_common(1)[0][0]
    return sorted((step for step in found if len(step) == usual), key=lambda step: step[-1][1] - step[0][0])


def main():
    """Prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--first", default="embedding_forward")
    parser.add_argument("--show", type=int, default=60)
    args = parser.parse_args()
    found = steps(sorted(kernels(args.trace)), args.first)
    middle = found[len(found) // 4 : max(len(found) // 4 + 1, len(found) * 3 // 4)]
    adds, runs, times = collections.Counter(), collections.Counter(), collections.Counter()
    for step in middle:
        last = step[0][0]
        for begin, end, _, _, name in sorted(step, key=lambda row: row[1]):
            runs[name] += end - begin
            times[name] += 1
            adds[name] += max(0, end - last)
            last = max(last, end)
    step = found[len(found) // 2]
    print(f"{len(found)} steps of {len(step)} kernels, the middle one {(step[-1][1] - step[0][0]) / 1e3:.1f} µs")
    print(f"{'adds, µs':>10} {'runs, µs':>10} {'times':>6} {'adds each':>10}")
    for name, added in adds.most_common():
        n = len(middle)
        print(f"{added / n / 1e3:10.1f} {runs[name] / n / 1e3:10.1f} {times[name] / n:6.1f} {added / times[name] / 1e3:10.2f}  {name}")
    print(f"{'begin':>10} {'end':>10} {'runs':>8} stream blocks")
    half = args.show // 2
    for at in (len(step) // 4, len(step) * 3 // 4):
        for begin, end, stream, blocks, name in step[at : at + half]:
            start = step[0][0]
            print(f"{(begin - start) / 1e3:10.2f} {(end - start) / 1e3:10.2f} {(end - begin) / 1e3:8.2f} {stream:6} {blocks:6}  {name}")


if __name__ == "__main__":
    main()
