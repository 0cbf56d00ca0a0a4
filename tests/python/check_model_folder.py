"""Does Python's transformers read the folders that emoji_lab saves?

    pip install torch transformers
    python tests/python/check_model_folder.py SAVED [--same-as FOLDER] [--chat CHAT.jsonl]

SAVED       a folder written by save_pretrained
--same-as   a transformers folder with the same weights: the logits must be identical
--chat      lines of {"messages", "text", "ids"} (golden/text/chat.jsonl) that the tokenizer must give

It prints a line a check and ends non-zero if one fails. Without torch only the configuration and
the tokenizer are checked.
"""

import argparse
import json
import sys
from pathlib import Path


def check_config(saved: str) -> str:
    """transformers takes the shape from config.json as emoji_lab wrote it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(saved)
    raw = json.loads((Path(saved) / "config.json").read_text())
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
                 "num_attention_heads", "num_key_value_heads", "sliding_window", "layer_types",
                 "rms_norm_eps", "query_pre_attn_scalar", "tie_word_embeddings", "eos_token_id",
                 "bos_token_id", "pad_token_id", "max_position_embeddings"):
        got = getattr(config, name)
        assert got == raw[name], f"{name} is {got}, config.json says {raw[name]}"
    full = raw["rope_parameters"]["full_attention"]
    sliding = raw["rope_parameters"]["sliding_attention"]
    if hasattr(config, "rope_local_base_freq") and not getattr(config, "rope_parameters", None):
        # transformers 4 reads the older form.
        scaling = config.rope_scaling or {}
        read = (config.rope_theta, config.rope_local_base_freq, scaling.get("factor"))
    else:
        rope = config.rope_parameters
        read = (rope["full_attention"]["rope_theta"], rope["sliding_attention"]["rope_theta"],
                rope["full_attention"].get("factor"))
    wanted = (full["rope_theta"], sliding["rope_theta"], full.get("factor"))
    assert read == wanted, f"RoPE is {read}, config.json says {wanted}"
    return f"{config.model_type}, {config.num_hidden_layers} layers"


def check_weights(saved: str) -> str:
    """Every tensor of the model is in the file, and nothing else."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.float32, output_loading_info=True)
    wrong = {name: found for name, found in info.items() if found}
    assert not wrong, str(wrong)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings, f"tied in memory: {tied}"
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def check_same_logits(saved: str, other: str) -> str:
    """Two folders hold the same model."""
    import torch
    from transformers import AutoModelForCausalLM

    logits = []
    for folder in (saved, other):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        ids = torch.arange(40).reshape(2, 20) * 7 % model.config.vocab_size
        with torch.no_grad():
            logits.append(model(ids).logits)
    worst = (logits[0] - logits[1]).abs().max().item()
    assert worst == 0, f"logits differ by up to {worst}"
    return f"identical, {tuple(logits[0].shape)}"


def check_tokenizer(saved: str, chat: str | None) -> str:
    """AutoTokenizer reads the tokenizer; with golden lines, template text and ids are identical."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:], str(ids)
    assert tokenizer.decode(ids) == text, f"{tokenizer.decode(ids)!r} from {text!r}"
    assert tokenizer("hi").input_ids[0] == tokenizer.bos_token_id, "encoding adds no <bos>"
    lines = Path(chat).read_text(encoding="utf-8").splitlines() if chat else []
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert text == row["text"], f"line {number}: {text!r}"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == row["ids"], f"line {number}: {ids}"
    return f"{len(tokenizer)} tokens, {len(lines)} chat lines"


def check_generation_config(saved: str) -> str:
    """Generation in Python stops at the end of a turn too."""
    from transformers import AutoTokenizer, GenerationConfig

    config = GenerationConfig.from_pretrained(saved)
    stop = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    end_of_turn = AutoTokenizer.from_pretrained(saved).convert_tokens_to_ids("<end_of_turn>")
    assert end_of_turn in stop, f"stops at {stop}, <end_of_turn> is {end_of_turn}"
    return f"stops at {stop}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saved")
    parser.add_argument("--same-as")
    parser.add_argument("--chat")
    args = parser.parse_args()
    checks = [
        ("config", lambda: check_config(args.saved)),
        ("tokenizer", lambda: check_tokenizer(args.saved, args.chat)),
        ("generation config", lambda: check_generation_config(args.saved)),
    ]
    try:
        import torch  # noqa: F401
        checks.append(("weights", lambda: check_weights(args.saved)))
        if args.same_as:
            checks.append(("logits", lambda: check_same_logits(args.saved, args.same_as)))
    except ImportError:
        print("skipped: weights and logits (no torch)")
    failed = 0
    for name, check in checks:
        try:
            print(f"ok      {name}: {check()}")
        except Exception as error:  # a check that cannot run has failed
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
