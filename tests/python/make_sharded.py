"""Writes tests/fixtures/sharded: a random Gemma 3 of other proportions than the 270M's, in bf16 and
several files as transformers splits larger models, and some of the logits that transformers gives.

    pip install torch transformers
    python tests/python/make_sharded.py
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "sharded"
# The embedded model's vocabulary, whose tokenizer the test puts beside it.
VOCABULARY = 2048
IDS = [2, 105, 1733, 4, 88, 2047, 300, 301, 302, 17, 1024, 9, 640, 1, 55]


def main():
    torch.manual_seed(5)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=72, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=20, sliding_window=5, max_position_embeddings=512,
        layer_types=["full_attention" if (i + 1) % 3 == 0 else "sliding_attention" for i in range(8)],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 250_000.0},
        },
        bos_token_id=2, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            # transformers starts norms at 0 and the rest small: as it is, much could be wrong unseen.
            value.copy_(torch.randn_like(value) * (0.3 if "norm" in name else 0.12))
    model = model.to(torch.bfloat16)
    shutil.rmtree(OUT, ignore_errors=True)
    model.save_pretrained(OUT, max_shard_size="150KB")
    model = Gemma3ForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    columns = list(range(0, VOCABULARY, 41))
    parameters = sum(value.numel() for value in model.parameters())
    golden = {"ids": IDS, "columns": columns, "logits": logits[:, columns].tolist(), "parameters": parameters}
    (OUT / "golden.json").write_text(json.dumps(golden) + "\n")
    (OUT / "generation_config.json").unlink(missing_ok=True)


main()
