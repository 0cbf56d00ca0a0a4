"""Writes random strings with the verdicts of Python's emoji 2.16.0, one JSON object a line.

    pip install emoji==2.16.0
    python tests/python/emoji_fuzz.py 300000 1 > fuzz.jsonl
    EMOJI_LAB_EMOJI_JSONL=$PWD/fuzz.jsonl cargo test --release -p emoji_lab --lib filter
"""
import json
import random
import sys

import emoji

count, seed = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
listed = list(emoji.EMOJI_DATA)
sequences = [e for e in listed if len(e) > 2]
components = [e for e in listed if emoji.EMOJI_DATA[e]["status"] == 1]
characters = sorted({c for e in listed for c in e})
joiners = ["\u200d", "\u200d", "\ufe0f", "\ufe0e", "\u20e3"]
text = list("a7#*© .é\t\n\u3030\u00a0中")


def piece():
    kind = rng.random()
    if kind < 0.30:
        return rng.choice(listed)
    if kind < 0.40:
        whole = rng.choice(sequences)
        start = rng.randrange(len(whole))
        return whole[start : rng.randint(start, len(whole))]
    if kind < 0.55:
        return rng.choice(components)
    if kind < 0.82:
        return rng.choice(joiners)
    if kind < 0.97:
        return rng.choice(characters)
    return rng.choice(text)


def row(s):
    return {
        "s": s,
        "purely_emoji": emoji.purely_emoji(s),
        "all_chars_emoji": bool(s) and all(emoji.is_emoji(c) for c in s),
        "list": [found["emoji"] for found in emoji.emoji_list(s)],
    }


strings = listed if seed == 1 else []
for s in strings + ["".join(piece() for _ in range(rng.randint(1, 9))) for _ in range(count)]:
    print(json.dumps(row(s), ensure_ascii=False))
