"""A Gemma 3 of other proportions than the 270M's, as transformers writes it, with the tokenizer of a folder.

    make_odd.py DIR TOKENIZER

A head that is not the embedding, two heads for keys and values, positions that are scaled, windows of 7 tokens,
a divisor of the scores that is not the width of a head; and weights large enough to tell.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def main():
    folder, tokenizer = map(Path, sys.argv[1:])
    torch.manual_seed(3)
    config = Gemma3TextConfig(
        vocab_size=2048, hidden_size=96, intermediate_size=160, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, sliding_window=7, max_position_embeddings=512, query_pre_attn_scalar=20,
        layer_types=[SLIDING, FULL, SLIDING, FULL], tie_word_embeddings=False, bos_token_id=2, eos_token_id=1,
        pad_token_id=0, rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 250000.0},
        },
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(3)
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(tokenizer / name, folder)


if __name__ == "__main__":
    main()
