"""Writes answers beside the rows' own with what Python's emoji 2.16.0 makes of them, one JSON object a line.

    pip install emoji==2.16.0
    python tests/python/make_scores.py > tests/fixtures/golden/text/scores.jsonl

F1 is 2 |A and B| / (|A| + |B|) over the emoji of both as multisets, 0 if neither has any.
"""
import collections
import json
import random

import emoji

rng = random.Random(13)
listed = list(emoji.EMOJI_DATA)
of_length = collections.defaultdict(list)
for e in listed:
    of_length[min(len(e), 4)].append(e)

CHOSEN = [
    # ZWJ sequences, their parts, and joiners that join nothing.
    "👨‍👩‍👧‍👦", "👨👩👧👦", "👩‍🚀", "👩🚀", "❤️‍🔥", "❤️🔥", "🏳️‍🌈", "🏳️🌈", "🐈‍⬛", "🐈‍🐈", "🎉‍🎂", "‍🎉", "🎉‍",
    # Flags: of countries, of regions in tags, halves, pairs that are none, a run of three letters.
    "🇵🇹", "🇵", "🇵🇹🇫🇷", "🇽🇽", "🇵🇹🇫", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🏴󠁧󠁢", "🏴",
    # Keycaps, whole and in parts.
    "1️⃣", "1⃣", "1", "#️⃣", "*️⃣", "1️⃣2️⃣", "12",
    # Skin tones: on what takes them, on what does not, twice, alone.
    "👍🏽", "👍", "🎉🏽", "👍🏽🏽", "🏽", "👩🏽‍🤝‍👨🏿", "🤝🏽",
    # Emoji, text and missing variation selectors.
    "❤️", "❤", "❤︎", "☀️", "☀", "⭐️", "⭐", "🏖️", "🏖",
    # Repeats, order, words between, nothing.
    "🎉🎉🎉", "🎉🎂", "🎂🎉", "🏖️🌊", "🌊🏖️", "The beach 🏖️ is 🌊!", "beach", "", " ", "🎉 🎂", "🎉\n🎂", "🎉.",
    "©", "™️", "〰️", "日本🗾", "\u200d", "\ufe0f",
]


def run():
    return "".join(rng.choice(of_length[rng.randint(1, 4)]) for _ in range(rng.randint(1, 5)))


def torn():
    """A sequence with a character missing, doubled or exchanged: mostly none that Unicode recommends."""
    chars = list(rng.choice(of_length[4]) + rng.choice(of_length[rng.randint(1, 3)]))
    i = rng.randrange(len(chars))
    kind = rng.random()
    if kind < 0.4:
        del chars[i]
    elif kind < 0.7:
        chars.insert(i, rng.choice(["\u200d", "\ufe0f", "\ufe0e", "🏿", chars[i]]))
    else:
        rng.shuffle(chars)
    return "".join(chars)


def near(want):
    """An answer that has something of `want`: emoji left out, doubled, in another order, with words."""
    found = [m["emoji"] for m in emoji.emoji_list(want)]
    kept = [e for e in found if rng.random() < 0.7] + [rng.choice(found or ["🎉"]) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.5:
        rng.shuffle(kept)
    words = rng.choice(["", "", "", " ", "ok ", "\u200d", "!"])
    return words.join(kept) + rng.choice(["", "", words])


def row(want, got):
    a = [m["emoji"] for m in emoji.emoji_list(got)]
    b = [m["emoji"] for m in emoji.emoji_list(want)]
    both = sum((collections.Counter(a) & collections.Counter(b)).values())
    return {
        "want": want,
        "got": got,
        "f1": 2 * both / (len(a) + len(b)) if a or b else 0.0,
        "first_right": float(bool(a) and a[:1] == b[:1]),
        "only_emoji": float(bool(got) and emoji.purely_emoji(got)),
        "exact": float(got == want),
        "emoji": float(len(a)),
        "distinct": float(len(set(a))),
        "repeats": float(len(set(a)) < len(a)),
    }


pairs = [(want, got) for want in CHOSEN for got in (want, rng.choice(CHOSEN))]
pairs += list(zip(CHOSEN, CHOSEN[1:]))
for _ in range(150):
    want = rng.choice([run, torn])()
    pairs += [(want, near(want)), (want, torn())]
for want, got in pairs:
    print(json.dumps(row(want, got), ensure_ascii=False))
