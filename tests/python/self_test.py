"""Whether oracle.py's checks notice what they are for.

Python itself makes a good folder (see oracle.py), which must pass. Then one thing at a time is
spoiled in a copy of it, and the check that is for it must fail.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.tensorboard import SummaryWriter
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast, get_scheduler, pipeline
from transformers.trainer_callback import TrainerControl, TrainerState
from trl import chat_template_utils

import oracle
import twin

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
        write_answers(merged)
    make_logs(root / "logs")
    make_twin(root)


def write_answers(folder):
    pipe = pipeline("text-generation", model=str(folder), tokenizer=str(folder), device="cpu")
    ours = []
    for text in ("beach", "rain"):
        chat = [{"role": "user", "content": text}]
        out = pipe(chat, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]
        ours.append({"messages": chat, "max_new_tokens": 8, "answer": out.strip()})
    (folder / "ours.json").write_text(json.dumps(ours))


def make_twin(root):
    """Python's own run stands in for ours."""
    folder = root / "twin"
    folder.mkdir()
    words = "abcdefghijklmnopqrstuvwxyz"
    rows = [
        [{"role": "user", "content": words[: 3 + i]}, {"role": "assistant", "content": words[i : i + 5]}]
        for i in range(7)
    ]
    for name, part in (("train", rows), ("eval", rows[:3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in part))
    args = {
        "num_train_epochs": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 3, "learning_rate": 2e-3, "lr_scheduler_type": "linear", "warmup_steps": 1,
        "max_length": 39, "load_best_model_at_end": True, "seed": 42,
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(args))
    lora = LoraConfig(
        r=24, lora_alpha=48, target_modules="all-linear", task_type="CAUSAL_LM",
        modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True,
    )  # fmt: skip
    torch.manual_seed(4)
    get_peft_model(oracle.load_model(root / "base"), lora).save_pretrained(folder / "init")
    factors = []
    for name in ("constant", "linear", "cosine"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_scheduler(name, optimizer, 2, 6)
        rates = []
        for _ in range(6):
            rates += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        factors.append({"name": name, "warmup": 2, "total": 6, "factors": rates})
    (folder / "schedules.json").write_text(json.dumps(factors))
    orders = [twin.documented_order(len(rows), 42, epoch) for epoch in range(2)]
    tensors = {f"order.{epoch}": torch.tensor(order) for epoch, order in enumerate(orders)}
    save_file(tensors, folder / "batches.safetensors")

    python = twin.python_run(root)
    batches = [twin.without_padding(batch) for batch in python["seen"]["train"]]
    half = len(batches) // 2
    pack(tensors, "train.0", batches[:half])
    pack(tensors, "train.1", batches[half:])
    evaluated = [twin.without_padding(batch) for batch in python["seen"]["eval"]]
    pack(tensors, "eval", evaluated[: len(evaluated) // 2])
    uncut = [{"prompt": row[:-1], "completion": row[-1:]} for row in rows]
    trainer = twin.trainer(folder, twin.base_model(root), str(folder / "none"), uncut, uncut[:1], orders, max_length=38)
    pack(tensors, "answers", [twin.without_padding(batch) for batch in trainer.get_train_dataloader()])
    talks = [rows[i] + (rows[i - 1] if i % 2 else []) for i in range(len(rows))]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in talks))
    trainer = twin.trainer(
        folder, twin.base_model(root), str(folder / "none"), [{"messages": row} for row in talks],
        [{"messages": talks[0]}], orders[:1], template=chat_template_utils.gemma3_chat_template, max_length=256,
        per_device_train_batch_size=4, assistant_only_loss=True,
    )  # fmt: skip
    pack(tensors, "talks", [twin.without_padding(batch) for batch in trainer.get_train_dataloader()])
    tensors["talks.order"] = torch.tensor(orders[0])
    save_file(tensors, folder / "batches.safetensors")

    (folder / "full" / "model").mkdir(parents=True)
    (folder / "full" / "run").mkdir()
    (folder / "full" / "args.json").write_text(json.dumps({"num_train_epochs": 1, "weight_decay": 2.0}))
    full = twin.python_full_run(root)
    save_file({name: p.contiguous() for name, p in full["parameters"].items()}, folder / "full/model/model.safetensors")
    (folder / "full" / "run" / "trainer_state.json").write_text(json.dumps({"log_history": full["log"]}))

    rows_dir = folder / "rows"
    (rows_dir / "run").mkdir(parents=True)
    (rows_dir / "args.json").write_text(json.dumps({"num_train_epochs": 1, "embedding_learning_rate": 5e-4}))
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", trainable_token_indices=list(range(30)))
    get_peft_model(twin.base_model(root), lora).save_pretrained(rows_dir / "init")
    python_rows = twin.python_rows_run(root)
    (rows_dir / "final").mkdir()
    save_file(python_rows["adapter"], rows_dir / "final" / "adapter_model.safetensors")
    (rows_dir / "run" / "trainer_state.json").write_text(json.dumps({"log_history": python_rows["log"]}))

    def without(log):
        return [{name: value for name, value in entry.items() if name not in twin.NOT_OURS} for entry in log]

    last = folder / "run" / f"checkpoint-{python['state']['global_step']}"
    last.mkdir(parents=True)
    save_file(python["adapter"], last / "adapter_model.safetensors")
    state = python["state"] | {"log_history": without(python["state"]["log_history"])}
    (last / "trainer_state.json").write_text(json.dumps(state))
    whole = state | {"log_history": without(python["log"])}
    (folder / "run" / "trainer_state.json").write_text(json.dumps(whole))


def pack(tensors, name, batches):
    rows = [row for batch in batches for row in batch]
    tensors[f"{name}.ids"] = torch.tensor([id for ids, _ in rows for id in ids])
    tensors[f"{name}.targets"] = torch.tensor([target for _, targets in rows for target in targets])
    tensors[f"{name}.lengths"] = torch.tensor([len(ids) for ids, _ in rows])
    tensors[f"{name}.rows"] = torch.tensor([len(batch) for batch in batches])


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


def add_events(root):
    """A resumed run that does not tell TensorBoard to forget what came later."""
    folder = next((root / "logs").rglob("events.out.tfevents.*")).parent
    writer = SummaryWriter(str(folder), filename_suffix=".again")
    writer.add_scalar("train/loss", 1.5, 2)
    writer.close()


def spoil_answer(root):
    path = root / "merged_tied" / "ours.json"
    ours = json.loads(path.read_text())
    ours[1]["answer"] += "x"
    path.write_text(json.dumps(ours))


def spoil_entry(root, which, change):
    """Changes an entry of the twin's log, in the checkpoint's file and in the run's."""
    for path in (root / "twin" / "run").rglob("trainer_state.json"):
        state = json.loads(path.read_text())
        change(state["log_history"][which])
        path.write_text(json.dumps(state))


def scale_entry(name, factor, which=0):
    return lambda root: spoil_entry(root, which, lambda entry: entry.update({name: entry[name] * factor}))


def spoil_schedule(root):
    path = root / "twin" / "schedules.json"
    ours = json.loads(path.read_text())
    ours[2]["factors"][4] += 1e-9
    path.write_text(json.dumps(ours))


def swapped(tensor):
    return tensor[[1, 0, *range(2, len(tensor))]]


def last_target(tensor):
    """A row's end, which has nothing to predict, learned all the same."""
    tensor = tensor.clone()
    tensor[-1] = 1
    return tensor


def spoil_last_adapter(root):
    path = next((root / "twin" / "run").glob("checkpoint-*")) / "adapter_model.safetensors"
    spoil_tensor(path, "lora_A", lambda tensor: tensor * 1.01)


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
    ("TensorBoard events", add_events),
    ("merged: pipeline, tied", spoil_answer),
    (
        "adapter: adapter_config.json, untied",
        lambda r: spoil_json(r / "adapter_untied/adapter_config.json", ensure_weight_tying=True),
    ),
    ("start: A and B", lambda r: spoil_tensor(r / "twin/init/adapter_model.safetensors", "lora_A", lambda t: t * 1.1)),
    ("start: A and B", lambda r: spoil_tensor(r / "twin/init/adapter_model.safetensors", "lora_A", lambda t: t.abs())),
    ("start: A and B", lambda r: spoil_tensor(r / "twin/init/adapter_model.safetensors", "lora_B", bump)),
    ("learning rates", spoil_schedule),
    ("row order", lambda r: spoil_tensor(r / "twin/batches.safetensors", "order.1", swapped)),
    ("batches: labels, padding, cut", lambda r: spoil_tensor(r / "twin/batches.safetensors", "train.0.targets", last_target)),
    ("batches: labels, padding, cut", lambda r: spoil_tensor(r / "twin/batches.safetensors", "eval.ids", swapped)),
    ("batches: labels, padding, cut", lambda r: spoil_json(r / "twin/args.json", max_length=40)),
    ("batches: answers alone", lambda r: spoil_tensor(r / "twin/batches.safetensors", "answers.targets", last_target)),
    ("batches: several answers", lambda r: spoil_tensor(r / "twin/batches.safetensors", "talks.targets", last_target)),
    ("run: losses", scale_entry("loss", 1 + 3e-5)),
    ("run: losses", scale_entry("eval_loss", 1 + 3e-5, 2)),
    ("run: grad_norm", scale_entry("grad_norm", 1 + 3e-4)),
    ("run: grad_norm, summed in f64", scale_entry("grad_norm", 1 + 3e-5)),
    ("run: learning rates and counts", scale_entry("num_tokens", 2)),
    ("run: learning rates and counts", scale_entry("epoch", 1 + 1e-9)),
    ("run: fields of trainer_state.json", lambda r: spoil_entry(r, 0, lambda entry: entry.pop("grad_norm"))),
    (
        "run: fields of trainer_state.json",
        lambda r: [spoil_json(p, eval_steps=1) for p in (r / "twin/run").rglob("trainer_state.json")],
    ),
    ("run: last checkpoint's adapter", spoil_last_adapter),
    # As if norms decayed like the rest.
    ("full run: weights and norms", lambda r: spoil_tensor(r / "twin/full/model/model.safetensors", "model.norm", lambda t: t * 0.9)),
    ("full run: weights and norms", lambda r: spoil_tensor(r / "twin/full/model/model.safetensors", "up_proj", lambda t: t * 1.01)),
    ("rows that occur: losses", lambda r: spoil_json(r / "twin/rows/run/trainer_state.json", log_history=[])),
    # As if the rows learned at the adapters' rate.
    ("rows that occur: adapter", lambda r: spoil_json(r / "twin/rows/args.json", embedding_learning_rate=2e-3)),
    ("full run: losses", lambda r: spoil_json(r / "twin/full/run/trainer_state.json", log_history=[])),
]  # fmt: skip


def main():
    oracle.quiet()
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
