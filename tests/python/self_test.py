"""Whether oracle.py's checks notice what they are for.

Python itself makes a good folder (see oracle.py), which must pass. Then one thing at a time is
spoiled in a copy of it, and the check that is for it must fail.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.tensorboard import SummaryWriter
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast
from transformers.trainer_callback import TrainerControl, TrainerState

import oracle

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ' ' + m['content'] }} {% endfor %}assistant "


def base_model():
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=4, max_position_embeddings=64,
        query_pre_attn_scalar=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def tokenizer():
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(chr(i) for i in range(33, 123))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        unk_token="<unk>", chat_template=TEMPLATE,
    )  # fmt: skip


def write_ours(model, folder):
    torch.manual_seed(2)
    ids = torch.randint(4, 96, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    save_file({"input_ids": ids, "attention_mask": mask, "logits": logits}, folder / "ours.safetensors")


def adapted(root, form):
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM",
        modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=form == "tied",
    )  # fmt: skip
    model = get_peft_model(oracle.load_model(root / "base"), lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def make_good(root):
    (root / "base").mkdir(parents=True)
    base = base_model()
    base.save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    write_ours(base, root / "base")
    for form in oracle.FORMS:
        model = adapted(root, form)
        adapter, merged = root / f"adapter_{form}", root / f"merged_{form}"
        model.save_pretrained(adapter)
        write_ours(model, adapter)
        whole = model.merge_and_unload()
        whole.generation_config.eos_token_id = 1
        whole.save_pretrained(merged)
        tokenizer().save_pretrained(merged)
        write_ours(whole, merged)
    make_logs(root / "logs")


def make_logs(folder):
    history = []
    for step in (1, 2):
        train = {"loss": 3.0 / step, "grad_norm": 0.1, "learning_rate": 5e-5, "num_tokens": 9.0 * step}
        history += [train | {"epoch": step / 2, "step": step}]
        history += [{"eval_loss": 3.5 / step, "epoch": step / 2, "step": step}]
    writer = SummaryWriter(str(folder / "runs" / "first"))
    for entry in history:
        for name, value in entry.items():
            if name != "step":
                tag = "eval/" + name[5:] if name.startswith("eval_") else "train/" + name
                writer.add_scalar(tag, value, entry["step"])
    writer.close()
    state = TrainerState(global_step=2, max_steps=2, log_history=history, stateful_callbacks=[TrainerControl()])
    state.save_to_json(str(folder / "trainer_state.json"))


def spoil_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spoil_tensor(path, part, change):
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if part in name)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, path, {"format": "pt"})


def bump(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] += 0.5
    return tensor


def cut_events(root):
    path = next((root / "logs").rglob("events.out.tfevents.*"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def drop_field(root):
    path = root / "adapter_tied" / "adapter_config.json"
    fields = json.loads(path.read_text())
    del fields["use_rslora"]
    path.write_text(json.dumps(fields))


# What is spoiled, and the row that must say so.
SPOILED = [
    ("base: logits", lambda r: spoil_tensor(r / "base/ours.safetensors", "logits", bump)),
    ("base: logits", lambda r: spoil_tensor(r / "base/model.safetensors", "q_proj", lambda t: None)),
    (
        "adapter: every tensor in PEFT, tied",
        lambda r: spoil_tensor(r / "adapter_tied/adapter_model.safetensors", "v_proj.lora_B", lambda t: None),
    ),
    (
        "adapter: PeftModel logits, untied",
        lambda r: spoil_tensor(r / "adapter_untied/adapter_model.safetensors", "lora_B", bump),
    ),
    (
        "adapter: head and embedding, untied",
        lambda r: spoil_json(r / "adapter_untied/adapter_config.json", ensure_weight_tying=True,
                             modules_to_save=["embed_tokens", "model.embed_tokens"]),
    ),
    ("adapter: adapter_config.json, tied", drop_field),
    ("merged: PEFT's merge, tied", lambda r: spoil_tensor(r / "merged_tied/model.safetensors", "up_proj", bump)),
    (
        "merged: keys and logits, tied",
        lambda r: spoil_tensor(r / "merged_tied/model.safetensors", "model.norm", lambda t: None),
    ),
    (
        "merged: keys and logits, untied",
        lambda r: spoil_tensor(r / "merged_untied/model.safetensors", "lm_head", lambda t: None),
    ),
    ("merged: saved and loaded again, untied", lambda r: spoil_json(r / "merged_untied/config.json", tie_word_embeddings=True)),
    ("merged: pipeline, tied", lambda r: (r / "merged_tied/tokenizer.json").unlink()),
    ("merged: pipeline, untied", lambda r: (r / "merged_untied/chat_template.jinja").unlink()),
    ("trainer_state.json", lambda r: spoil_json(r / "logs/trainer_state.json", not_a_field=1)),
    ("trainer_state.json", lambda r: spoil_json(r / "logs/trainer_state.json", log_history=[])),
    ("TensorBoard events", cut_events),
]  # fmt: skip


def main():
    logging.disable(logging.WARNING)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        make_good(good)
        rows = oracle.run_checks(good)
        oracle.print_table(rows)
        bad += sum(row[1] != "ok" for row in rows)
        print()
        for i, (check, spoil) in enumerate(SPOILED):
            copy = Path(folder) / f"spoiled_{i}"
            shutil.copytree(good, copy)
            spoil(copy)
            [row] = oracle.run_checks(copy, only=check)
            noticed = row[1] == "FAIL"
            bad += not noticed
            print(f"{'noticed' if noticed else 'MISSED '}  {check}: {row[3][:110]}")
            shutil.rmtree(copy)
    print(f"\n{'the checks can be trusted' if not bad else f'{bad} wrong'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
