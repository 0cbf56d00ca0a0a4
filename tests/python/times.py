"""transformers as a peer of the benchmark `cpu`: answers lines of JSON on its input with lines of JSON.

usage: times.py FOLDER THREADS

  {"do": "generate", "prompt": [ids], "tokens": N}   N greedy tokens after the prompt, in bf16

Answers have "seconds" (all of it), "first" (to the first token, from a call of its own), and the tokens.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def generate(prompt, tokens):
    ids = torch.tensor([prompt])
    started = time.perf_counter()
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
    return time.perf_counter() - started, out[0, len(prompt) :].tolist()


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    first, _ = generate(asked["prompt"], 1)
    seconds, answer = generate(asked["prompt"], asked["tokens"]) if asked["tokens"] > 1 else (first, [])
    print(json.dumps({"first": first, "seconds": seconds, "answer": answer}), flush=True)
