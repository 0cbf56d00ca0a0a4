"""Writes what the fuzzers begin with: small good files, and the shapes that caused faults elsewhere.

`python3 tests/fuzz/make_seeds.py`, in the standard library alone; the files are committed. What a
fuzzer found and was mended is kept beside them under a name that says what it is.
"""

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "seeds"
TEMPLATE = (HERE.parent.parent.parent / "emoji_lab/assets/gemma3_chat_template.jinja").read_text()


def write(target: str, name: str, content: bytes | str) -> None:
    path = HERE / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tables() -> None:
    write("csv", "comma.csv", "text,emoji\nlet's go to the beach,🏖️☀️\n\"two\nlines, quoted \"\"so\"\"\",🎉\n")
    write("csv", "semicolon.csv", "Text;Emoji\r\nsun, sea and sand;🏖️\r\n")
    write("csv", "tab.csv", "\ufefftext\temoji\tnote\npizza\t🍕\t\n")
    write("csv", "sep.csv", "sep=;\ntext;emoji\nsun;☀️\n")
    write("csv", "utf16.csv", "\ufefftext,emoji\nsun,☀️\n".encode("utf-16-le"))
    write("csv", "open-quote.csv", 'text,emoji\n"sun,☀️\n')
    write("csv", "protocol.csv", 'text,emoji\n"a EVCXR_BEGIN_CONTENT text/html\n<b>x</b>\nEVCXR_END_CONTENT",🎉\n')
    rows = [{"text": "sun", "emoji": "☀️", "n": float("nan")}, {"text": "pizza", "emoji": "🍕", "n": None}]
    write("jsonl", "rows.jsonl", "".join(json.dumps(row, ensure_ascii=row["text"] == "sun") + "\n" for row in rows))
    write("jsonl", "deep.jsonl", "[" * 200 + "]" * 200 + "\n")
    write("jsonl", "surrogate.jsonl", '{"text": "\\ud83d", "emoji": "\\ud83c\\udf55"}\n')
    write("json", "rows.json", json.dumps(rows))
    write("json", "columns.json", json.dumps({"text": ["a", "b"], "emoji": ["🎉", "🍕"]}))
    write("json", "index.json", json.dumps({"text": {"0": "a"}, "emoji": {"0": "🎉"}}))
    write("json", "data.json", json.dumps({"data": rows[1:], "version": 1}))
    write("json", "viewer.json", json.dumps({"rows": [{"row_idx": 0, "row": rows[1]}]}))


CONFIG = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 16, "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 512,
    "_sliding_window_pattern": 6, "query_pre_attn_scalar": 8, "max_position_embeddings": 32768,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "eos_token_id": [1, 106],
}


def configs() -> None:
    write("config", "flat.json", json.dumps(CONFIG))
    nested = dict(CONFIG, rope_scaling={"factor": 8.0, "rope_type": "linear"})
    write("config", "nested.json", json.dumps({"model_type": "gemma3", "text_config": nested, "vision_config": {}}))
    new = {k: v for k, v in CONFIG.items() if not k.startswith("rope") and "pattern" not in k}
    new["layer_types"] = ["full_attention"]
    new["rope_parameters"] = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                              "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}
    write("config", "rope-parameters.json", json.dumps(new))
    write("config", "huge.json", json.dumps(dict(CONFIG, num_hidden_layers=2**62, vocab_size=2**62)))
    write("generation_config", "gemma.json", json.dumps({
        "bos_token_id": 2, "do_sample": True, "eos_token_id": [1, 106], "pad_token_id": 0, "top_k": 64, "top_p": 0.95,
        "temperature": 1.0, "max_new_tokens": 32, "transformers_version": "5.23.0"}))
    write("generation_config", "odd.json", json.dumps({"eos_token_id": None, "top_k": "64", "temperature": 1e400}))
    peft = {
        "peft_type": "LORA", "r": 1, "lora_alpha": 2, "lora_dropout": 0.05, "target_modules": ["q_proj"],
        "base_model_name_or_path": "x", "bias": "none", "fan_in_fan_out": False, "task_type": "CAUSAL_LM",
        "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {},
        "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "exclude_modules": None,
        "trainable_token_indices": None, "init_lora_weights": True, "inference_mode": True, "revision": None}
    write("adapter_config", "peft.json", json.dumps(peft))
    write("adapter_config", "regex.json", json.dumps(dict(peft, target_modules=r".*layers\.0\.self_attn\.(q|v)_proj")))
    write("adapter_config", "patterns.json", json.dumps(dict(
        peft, rank_pattern={"^model.layers.0.*q_proj": 1}, alpha_pattern={"q_proj": 4}, layers_to_transform=[0],
        layers_pattern="layers", use_rslora=True, target_modules="all-linear")))
    state = {"best_metric": 1.5, "best_global_step": 3, "best_model_checkpoint": "a/checkpoint-3", "epoch": 1.0,
             "eval_steps": 500, "global_step": 3, "is_hyper_param_search": False, "is_local_process_zero": True,
             "is_world_process_zero": True, "log_history": [{"epoch": 1.0, "loss": 2.0, "step": 3, "grad_norm": 1.0}],
             "logging_steps": 1, "max_steps": 3, "num_input_tokens_seen": 0, "num_train_epochs": 1, "save_steps": 500,
             "stateful_callbacks": {}, "total_flos": 1.0, "train_batch_size": 4, "trial_name": None,
             "trial_params": None}
    write("trainer_state", "state.json", json.dumps(state))
    write("trainer_state", "nan.json", json.dumps(dict(state, best_metric=float("nan"))))


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(dict({"__metadata__": {"format": "pt"}}, **header)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tensors() -> None:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    f32 = struct.pack("<2f", 1.0, -2.0)
    write("adapter_tensors", "pair.safetensors", safetensors({
        f"{module}.lora_A.weight": ("F32", [1, 2], f32), f"{module}.lora_B.weight": ("F32", [2, 1], f32)}))
    write("adapter_tensors", "named.safetensors", safetensors({
        f"{module}.lora_A.default.weight": ("BF16", [1, 2], f32[:4]),
        f"{module}.lora_B.default.weight": ("BF16", [2, 1], f32[:4]),
        "base_model.model.model.embed_tokens.weight": ("F16", [1, 2], f32[:4])}))
    for dtype, width in [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1), ("F8_E4M3", 1), ("BOOL", 1)]:
        write("safetensors", f"{dtype}.safetensors", safetensors({"a": (dtype, [2, 3], bytes(6 * width))}))
    write("safetensors", "empty.safetensors", safetensors({"a": ("F32", [0], b""), "b": ("F32", [], bytes(4))}))
    write("safetensors", "long-header.safetensors", struct.pack("<Q", 2**63) + b"{}")


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, gguf_text(value)
    kind = gguf_value(value[0])[0]
    if isinstance(value[0], int):
        kind = 5  # int32, as token types are
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(gguf_value(v)[1] for v in value)


def gguf(metadata: dict, infos: list[tuple[str, list[int], int, bytes]]) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata))
    for key, value in metadata.items():
        kind, content = gguf_value(value)
        out += gguf_text(key) + struct.pack("<I", kind) + content
    data = b""
    for name, dims, kind, content in infos:
        data += bytes(-len(data) % 32)
        out += gguf_text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, len(data))
        data += content
    return out + bytes(-len(out) % 32) + data


def ggufs() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "a", "b", "ab", "▁", "▁a", "c",
              "<0x0A>", "<0x0B>", "h", "i"]
    types = [3, 3, 3, 2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 6, 1, 1]
    meta = {
        "general.architecture": "gemma3", "general.name": "seed", "gemma3.context_length": 64,
        "gemma3.embedding_length": 32, "gemma3.block_count": 1, "gemma3.feed_forward_length": 32,
        "gemma3.attention.head_count": 2, "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "gemma3.attention.key_length": 8,
        "gemma3.attention.value_length": 8, "gemma3.attention.sliding_window": 8, "gemma3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(16)], "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False, "tokenizer.chat_template": TEMPLATE,
    }
    sizes = {"F32": (0, 4, 1), "F16": (1, 2, 1), "Q4_0": (2, 18, 32), "Q5_0": (6, 22, 32), "Q8_0": (8, 34, 32),
             "BF16": (30, 2, 1), "Q4_1": (3, 20, 32), "Q5_1": (7, 24, 32)}
    layer = {"attn_q": [32, 16], "attn_k": [32, 8], "attn_v": [32, 8], "attn_output": [16, 32], "ffn_gate": [32, 32],
             "ffn_up": [32, 32], "ffn_down": [32, 32]}
    norms = {"attn_norm": 32, "post_attention_norm": 32, "ffn_norm": 32, "post_ffw_norm": 32, "attn_q_norm": 8,
             "attn_k_norm": 8}
    for name, (kind, block, values) in sizes.items():
        def tensor(dims, kind=kind, block=block, values=values):
            # A row that is no whole number of blocks stays in f32, as converters leave it.
            if dims[0] % values:
                kind, block, values = 0, 4, 1
            count = dims[0] * (dims[1] if len(dims) > 1 else 1)
            return dims, kind, bytes((7 * i) % 61 for i in range(count // values * block))
        infos = [("token_embd.weight", *tensor([32, 16])), ("output_norm.weight", *tensor([32], 0, 4, 1))]
        infos += [(f"blk.0.{part}.weight", *tensor(dims)) for part, dims in layer.items()]
        infos += [(f"blk.0.{part}.weight", *tensor([size], 0, 4, 1)) for part, size in norms.items()]
        write("gguf", f"{name}.gguf", gguf(meta, infos))
    write("gguf", "no-tensors.gguf", gguf(meta, []))
    write("gguf", "old.gguf", b"GGUF" + struct.pack("<III", 1, 0, 0))


def tokenizers() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "a", "b", "ab", "▁", "▁a", "h",
              "i", "<0x0A>", "l", "e", "t"]
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, t in enumerate(tokens[:6])]
    small = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [["a", "b"], ["▁", "a"]]},
    }
    write("tokenizer", "small.json", json.dumps(small, ensure_ascii=False))
    word = dict(small, model={"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": "<unk>"},
                normalizer=None, pre_tokenizer={"type": "Whitespace"})
    write("tokenizer", "words.json", json.dumps(word, ensure_ascii=False))
    regex = dict(small, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                                       "invert": False})
    write("tokenizer", "regex.json", json.dumps(regex, ensure_ascii=False))
    write("tokenizer_config", "gemma.json", json.dumps({
        "bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": False}, "pad_token": "<pad>",
        "unk_token": "<unk>", "chat_template": TEMPLATE, "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}}}))
    write("tokenizer_config", "named.json", json.dumps({
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"},
                          {"name": "tool_use", "template": "{{ tools }}"}]}))


def templates() -> None:
    write("template", "gemma.jinja", TEMPLATE)
    write("template", "chatml.jinja", "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    write("template", "generation.jinja", "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
          "{{ m.content | trim }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}")
    write("template", "date.jinja", "{{ strftime_now('%d %B %Y %-d %A %j') }}{{ raise_exception('no') }}")
    write("template", "macros.jinja", "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(9) }}"
          "{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{{ messages[::-1] | length }}"
          "{{ {'a': [1, none, true]} | tojson(indent=2) }}")
    write("template", "endless.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}")
    write("template", "long.jinja", "{{ 'x' * 1000000000 }}{{ '%1000000000d' | format(1) }}{{ 'x' | center(10000000) }}")


def hub() -> None:
    write("hub_card", "configs.md", "---\nlicense: mit\nconfigs:\n- config_name: default\n  default: true\n  sep: ';'\n"
          "  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    path: [a.csv, b.csv]\n---\n# x\n")
    write("hub_card", "one.md", "---\nconfigs:\n- data_files: rows.csv\n- data_dir: data\n---\n")
    write("hub_card", "references.md", "---\na: &a [configs, x]\nb: &b [*a, *a]\nc: [*b, *b]\nconfigs: *b\n---\n")
    lfs = {"type": "file", "oid": "a" * 40, "size": 12, "path": "model.safetensors",
           "lfs": {"oid": "b" * 64, "size": 12, "pointerSize": 130}}
    rows = [{"type": "directory", "oid": "c" * 40, "size": 0, "path": "data"}, lfs,
            {"type": "file", "oid": "d" * 40, "size": 3, "path": "data/train.csv"}]
    write("hub_listing", "files.json", json.dumps(rows))
    write("hub_listing", "out.json", json.dumps([dict(lfs, path="../x"), dict(lfs, path="a EVCXR_BEGIN_CONTENT x")]))


def shown() -> None:
    write("shown", "protocol.txt", "a EVCXR_BEGIN_CONTENT text/html\n<img src=x onerror=alert(1)>\nEVCXR_END_CONTENT\n"
          "EVCXR_PANIC_NOTIFICATION\nEVCXR_EVCXR__\n")
    write("shown", "controls.txt", "\x1b[2J\x1b]8;;http://x\x07y\x1b]8;;\x07 \u202eabc\u2066 \r\b\x9b1m \u2028 🏴\U000e0067\U000e007f 👩‍💻")


for part in (tables, configs, tensors, ggufs, tokenizers, templates, hub, shown):
    part()
print(sum(1 for path in HERE.rglob("*") if path.is_file()), "seeds")
