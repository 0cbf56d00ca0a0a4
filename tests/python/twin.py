"""A short run of ours that TRL's SFTTrainer repeats: same start, same rows, same order.

twin/, as emoji_lab/tools/export_for_python fills it:

    train.jsonl, eval.jsonl  rows as messages, in dataset order
    args.json                settings, by their names in SFTConfig
    init/                    the adapter before the first step, tied, without dropout
    run/                     what our trainer left: trainer_state.json, checkpoint-N/
    schedules.json           factors of the learning rate: name, warmup, total, factors
    batches.safetensors      what our model saw, I64, padding left out:
        order.E              rows of epoch E, as places in train.jsonl
        train.E.ids, .targets, .lengths, .rows    tokens of epoch E end to end, what each is to predict
                             (-100: nothing), tokens by row, rows by batch
        eval.ids, ...        the same for the evaluation
        answers.ids, ...     the same for epoch 0 with only the answers learned, and the longest row
                             cut by one token
        talks.ids, ...       the same of conversations with several answers, in batches of four
        talks.order          their order, as places in talks.jsonl
    talks.jsonl              those conversations
    full/                    a run without adapters, every parameter trained, from base/
        args.json            what its settings are other than in args.json
        run/                 its trainer_state.json
        model/               the model that came of it
    rows/                    a run with adapters and the rows of the embedding that occur, whose rate is their own
        args.json            what its settings are other than in args.json, embedding_learning_rate among them
        init/, final/        its adapter before the first step and after the last
        run/                 its trainer_state.json
"""

import functools
import json
import tempfile
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer, chat_template_utils

from need import need

# What SFTTrainer logs and we do not compute: it costs a softmax over the vocabulary for each token.
NOT_OURS = {"entropy", "mean_token_accuracy", "eval_entropy", "eval_mean_token_accuracy"}


class Order:
    """A sampler that goes through the epochs' given orders."""

    def __init__(self, orders):
        self.orders, self.epoch = orders, 0

    def __iter__(self):
        order = self.orders[self.epoch % len(self.orders)]
        self.epoch += 1
        return iter(order)

    def __len__(self):
        return len(self.orders[0])


class Trainer(SFTTrainer):
    """Takes the rows in a given order, and keeps what the numbers are made of."""

    orders = None

    def _get_train_sampler(self, train_dataset=None):
        return Order(self.orders)

    def get_train_dataloader(self):
        return self.watched("train", super().get_train_dataloader)

    def get_eval_dataloader(self, eval_dataset=None):
        return self.watched("eval", lambda: super(Trainer, self).get_eval_dataloader(eval_dataset))

    def watched(self, name, loader):
        # The loader makes batches ahead of time, so the model's mode would not tell which they are.
        collate, batches = self.data_collator, self.seen.setdefault(name, [])

        def keep(examples):
            batches.append(collate(examples))
            return batches[-1]

        self.data_collator = keep
        try:
            return loader()
        finally:
            self.data_collator = collate

    def _clip_grad_norm(self, model):
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        self.norms.append(torch.stack(squares).sum().sqrt().item())
        return super()._clip_grad_norm(model)


def read_rows(path):
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def trainer(twin, model, output_dir, train, evaluation, orders, template=None, **other):
    args = json.loads((twin / "args.json").read_text())
    args |= {"eval_strategy": "epoch", "save_strategy": "epoch"} | other
    config = SFTConfig(
        output_dir=output_dir, logging_strategy="steps", logging_steps=1, report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, optim="adamw_torch", disable_tqdm=True, **args,
    )  # fmt: skip
    Trainer.orders = orders
    tokenizer = AutoTokenizer.from_pretrained(twin.parent / "base")
    tokenizer.chat_template = template or tokenizer.chat_template
    made = Trainer(
        model=model, args=config, train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(evaluation), processing_class=tokenizer,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)  # stdout is for the table
    made.seen, made.norms = {}, []
    return made


def base_model(root):
    return AutoModelForCausalLM.from_pretrained(
        root / "base", dtype=torch.float32, attn_implementation="eager"
    )


def orders_of(twin):
    ours = load_file(twin / "batches.safetensors")
    return [ours[f"order.{epoch}"].tolist() for epoch in range(sum(name.startswith("order.") for name in ours))]


@functools.lru_cache(maxsize=1)
def python_run(root):
    """TRL's run: its log, the batches it made, its last checkpoint's state and adapter."""
    twin = root / "twin"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base_model(root), str(twin / "init"), is_trainable=True)
        train, evaluation = ([{"messages": m} for m in read_rows(twin / f"{n}.jsonl")] for n in ("train", "eval"))
        made = trainer(twin, model, folder, train, evaluation, orders_of(twin))
        made.train()
        last = Path(folder) / f"checkpoint-{made.state.global_step}"
        state = json.loads((last / "trainer_state.json").read_text())
        adapter = load_file(last / "adapter_model.safetensors")
        log, seen, norms = made.state.log_history, made.seen, made.norms
        return {"log": log, "seen": seen, "norms": norms, "state": state, "adapter": adapter}


def our_state(root, last=True):
    run = root / "twin" / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    if last:
        state = json.loads((run / f"checkpoint-{state['global_step']}" / "trainer_state.json").read_text())
    return state


def entries(log, kind):
    return [entry for entry in log if kind in entry]


def worst_relative(root, kind, name):
    ours, theirs = entries(our_state(root)["log_history"], kind), entries(python_run(root)["log"], kind)
    need(len(ours) == len(theirs) > 0, f"{len(ours)} entries with {kind}, Python has {len(theirs)}")
    return len(ours), max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(ours, theirs))


# --- checks -----------------------------------------------------------------------------------


def check_schedules(root, _, __):
    """The learning rate's factors are those of transformers' schedulers."""
    count = 0
    for ours in json.loads((root / "twin" / "schedules.json").read_text()):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule = get_scheduler(ours["name"], optimizer, ours["warmup"], ours["total"])
        for step, factor in enumerate(ours["factors"]):
            want = schedule.get_last_lr()[0]
            said = f"{ours['name']}, warmup {ours['warmup']} of {ours['total']}, step {step}"
            need(abs(factor - want) <= 1e-15, f"{said}: {factor}, Python {want}")
            optimizer.step()
            schedule.step()
            count += 1
    names = {ours["name"] for ours in json.loads((root / "twin" / "schedules.json").read_text())}
    need({"constant", "linear", "cosine"} <= names, f"only {names}")
    return f"{count} factors", "1e-15"


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & 0xFFFFFFFF, a >> 32 ^ counter[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def documented_order(rows, seed, epoch):
    """SftTrainer::epoch_order, written from what its documentation and Philox's say."""
    stream = 2**62 + epoch

    def words():
        block = 0
        while True:
            counter = [block & 0xFFFFFFFF, block >> 32, stream & 0xFFFFFFFF, stream >> 32]
            yield from philox(counter, [seed & 0xFFFFFFFF, seed >> 32])
            block += 1

    source, order = words(), list(range(rows))
    for i in range(rows - 1, 0, -1):
        n = i + 1
        product = next(source) * n
        while product % 2**32 < 2**32 % n:
            product = next(source) * n
        j = product >> 32
        order[i], order[j] = order[j], order[i]
    return order


def check_order(root, _, __):
    """Each epoch's order is the documented one, and another than the last epoch's."""
    twin = root / "twin"
    orders, rows = orders_of(twin), len(read_rows(twin / "train.jsonl"))
    seed = json.loads((twin / "args.json").read_text())["seed"]
    need(len(orders) > 1 and orders[0] != orders[1], "the epochs go through the rows in one order")
    for epoch, order in enumerate(orders):
        need(order == documented_order(rows, seed, epoch), f"epoch {epoch} has another order than documented")
    return f"{len(orders)} epochs", "exact"


def our_batches(twin, name):
    """Our batches as lists of rows: (ids, targets)."""
    ours = load_file(twin / "batches.safetensors")
    ids, targets = ours[f"{name}.ids"].tolist(), ours[f"{name}.targets"].tolist()
    rows, at = [], 0
    for length in ours[f"{name}.lengths"].tolist():
        rows.append((ids[at : at + length], targets[at : at + length]))
        at += length
    batches, at = [], 0
    for count in ours[f"{name}.rows"].tolist():
        batches.append(rows[at : at + count])
        at += count
    return batches


def without_padding(batch):
    """A collated batch as ours are: a row's tokens, and the label of the next column for each."""
    rows = []
    for ids, mask, labels in zip(*(batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))):
        length = sum(mask)
        need(mask == [1] * length + [0] * (len(mask) - length), "padding is not on the right")
        need(all(label == -100 for label in labels[length:]), "a label on padding")
        rows.append((ids[:length], (labels[1:] + [-100])[:length]))
    need(max(len(ids) for ids, _ in rows) == batch["input_ids"].shape[1], "padded beyond the longest row")
    return rows


def same_batches(name, ours, theirs):
    need(len(ours) == len(theirs), f"{name}: {len(ours)} batches, Python has {len(theirs)}")
    for i, (a, b) in enumerate(zip(ours, theirs)):
        need(len(a) == len(b), f"{name}: batch {i} has {len(a)} rows, Python's {len(b)}")
        for j, ((our_ids, our_targets), (ids, targets)) in enumerate(zip(a, b)):
            need(our_ids == ids, f"{name}: batch {i} row {j} has other tokens")
            need(our_targets == targets, f"{name}: batch {i} row {j} has other labels")


def check_batches(root, _, __):
    """Tokens, labels, cutting, padding and grouping are those of TRL's dataset and collator."""
    twin = root / "twin"
    args = json.loads((twin / "args.json").read_text())
    seen = python_run(root)["seen"]
    epochs = [our_batches(twin, f"train.{epoch}") for epoch in range(len(orders_of(twin)))]
    train = [without_padding(batch) for batch in seen["train"]]
    same_batches("training", sum(epochs, []), train)
    # TRL evaluates once an epoch.
    evaluated = [without_padding(batch) for batch in seen["eval"]]
    same_batches("evaluation", our_batches(twin, "eval") * len(epochs), evaluated)
    # Else the comparison would show little.
    lengths = [len(ids) for batch in epochs[0] for ids, _ in batch]
    need(max(lengths) == args["max_length"], "no row is cut")
    need(len(set(lengths)) > 1, "no row is padded")
    size = args["per_device_train_batch_size"]
    need(0 < len(epochs[0][-1]) < size, "the last batch is not a smaller one")
    need(len(epochs[0]) % args["gradient_accumulation_steps"], "the last step is not a smaller one")
    return f"{len(train) + len(evaluated)} batches", "exact"


def check_answers(root, _, __):
    """`assistant_only_loss` learns what TRL learns of prompt and completion."""
    twin = root / "twin"
    rows = [{"prompt": m[:-1], "completion": m[-1:]} for m in read_rows(twin / "train.jsonl")]
    ours = our_batches(twin, "answers")
    longest = max(len(ids) for batch in ours for ids, _ in batch)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = {"max_length": longest}
        made = trainer(twin, base_model(root), folder, rows, rows[:1], orders_of(twin), **other)
        theirs = [without_padding(batch) for batch in made.get_train_dataloader()]
    same_batches("answers", ours, theirs)
    learned = sum(target != -100 for batch in ours for _, targets in batch for target in targets)
    return f"{learned} targets", "exact"


def check_talks(root, _, __):
    """`assistant_only_loss` learns every answer of a conversation, as TRL's template for Gemma 3 marks them."""
    twin = root / "twin"
    rows = [{"messages": m} for m in read_rows(twin / "talks.jsonl")]
    order = load_file(twin / "batches.safetensors")["talks.order"].tolist()
    ours = our_batches(twin, "talks")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = {"max_length": 256, "per_device_train_batch_size": 4, "assistant_only_loss": True}
        # TRL knows Gemma's own text by heart, and takes one with {% generation %} tags in its place.
        made = trainer(
            twin, base_model(root), folder, rows, rows[:1], [order],
            template=chat_template_utils.gemma3_chat_template, **other,
        )  # fmt: skip
        theirs = [without_padding(batch) for batch in made.get_train_dataloader()]
    same_batches("talks", ours, theirs)
    learned = [[target != -100 for target in targets] for batch in ours for _, targets in batch]
    answers = [sum(now and not before for before, now in zip([False, *row], row)) for row in learned]
    need(max(answers) > 1, "no conversation has several answers")
    return f"{sum(map(sum, learned))} targets in {sum(answers)} answers", "exact"


@functools.lru_cache(maxsize=1)
def python_full_run(root):
    """TRL's run without adapters: its log, and the parameters by name."""
    twin = root / "twin"
    train = [{"messages": m} for m in read_rows(twin / "train.jsonl")]
    other = json.loads((twin / "full" / "args.json").read_text())
    other |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer(twin, base_model(root), folder, train, train[:1], orders_of(twin), **other)
        made.train()
        parameters = {name: p.detach().float().clone() for name, p in made.model.named_parameters()}
    return {"log": made.state.log_history, "parameters": parameters}


@functools.lru_cache(maxsize=1)
def python_rows_run(root):
    """TRL's run with trainable tokens, in a parameter group of their own: its log and its adapter."""
    twin = root / "twin"
    train = [{"messages": m} for m in read_rows(twin / "train.jsonl")]
    other = json.loads((twin / "rows" / "args.json").read_text())
    rate = other.pop("embedding_learning_rate")
    other |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base_model(root), str(twin / "rows" / "init"), is_trainable=True)
        made = trainer(twin, model, folder, train, train[:1], orders_of(twin), **other)
        # TRL multiplies by the head's weight itself, which PEFT's wrapper gives with the rows put in, and
        # asks for a bias, which the wrapper does not know of.
        model.get_output_embeddings().bias = None
        groups = {True: [], False: []}
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad:
                groups["trainable_tokens_delta" in name].append(parameter)
        need(len(groups[True]) == 1, f"{len(groups[True])} tensors of trainable tokens in PEFT, not one")
        args = made.args
        made.optimizer = torch.optim.AdamW(
            [{"params": groups[False]}, {"params": groups[True], "lr": rate}], lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, weight_decay=args.weight_decay,
        )  # fmt: skip
        made.train()
        made.model.save_pretrained(folder)
        adapter = load_file(Path(folder) / "adapter_model.safetensors")
    return {"log": made.state.log_history, "adapter": adapter}


def worst_loss(run, theirs):
    """How far each step's loss in `run`'s trainer_state.json is from Python's log, as a share of it."""
    state = json.loads((run / "trainer_state.json").read_text())
    ours, theirs = entries(state["log_history"], "loss"), entries(theirs, "loss")
    need(len(ours) == len(theirs) > 1, f"{len(ours)} entries with loss, Python has {len(theirs)}")
    worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, theirs))
    need(worst <= 1e-5, f"a loss differs by {worst:.1e} of itself")
    return f"{worst:.1e} of {len(ours)}", "1e-05"


def norms_apart(ours, theirs, start, is_kind):
    """Of the tensors that are of a kind, as one, and of the others: the norms of the difference, of Python's
    values, and of what Python's run moved."""
    need(set(ours) == set(theirs), f"names differ: {sorted(set(ours) ^ set(theirs))[:3]}")
    for kind in (True, False):
        names = [name for name in sorted(theirs) if is_kind(name) == kind]
        a, b, s = (torch.cat([part[name].flatten().double() for name in names]) for part in (ours, theirs, start))
        need((b - s).norm() > 1e-3 * b.norm(), "Python's run moved nothing")
        yield (a - b).norm().item(), b.norm().item(), (b - s).norm().item()


def check_rows_losses(root, _, __):
    """Each step's loss with the rows that occur."""
    return worst_loss(root / "twin" / "rows" / "run", python_rows_run(root)["log"])


def check_rows_adapter(root, _, __):
    """What was trained is the same, all LoRA tensors as one and the rows of the embedding as one."""
    ours, start = (load_file(root / "twin/rows" / part / "adapter_model.safetensors") for part in ("final", "init"))
    apart = norms_apart(ours, python_rows_run(root)["adapter"], start, lambda name: ".lora_" in name)
    # Of what they moved: rows move little beside what they are.
    worst = max(difference / moved for difference, _, moved in apart)
    need(worst <= 1e-3, f"differs by {worst:.1e} of what it moved")
    return f"{worst:.1e}", "1e-03"


def check_full_losses(root, _, __):
    """Each step's loss without adapters."""
    return worst_loss(root / "twin" / "full" / "run", python_full_run(root)["log"])


def check_full_weights(root, _, __):
    """What is trained without adapters is the same: norms, which do not decay, and the rest, which does."""
    ours = load_file(root / "twin" / "full" / "model" / "model.safetensors")
    start = load_file(root / "base" / "model.safetensors")
    apart = norms_apart(ours, python_full_run(root)["parameters"], start, lambda name: "norm" in name)
    worst = max(difference / norm for difference, norm, _ in apart)
    need(worst <= 1e-4, f"differs by {worst:.1e} of its norm")
    return f"{worst:.1e}", "1e-04"


def check_losses(root, _, __):
    """Each step's loss and each evaluation's."""
    steps, train = worst_relative(root, "loss", "loss")
    evaluations, evaluation = worst_relative(root, "eval_loss", "eval_loss")
    worst = max(train, evaluation)
    need(worst <= 1e-5, f"a loss differs by {worst:.1e} of itself")
    return f"{worst:.1e} of {steps}+{evaluations}", "1e-05"


def check_norms(root, _, __):
    steps, worst = worst_relative(root, "loss", "grad_norm")
    need(worst <= 1e-4, f"a norm differs by {worst:.1e} of itself")
    return f"{worst:.1e} of {steps}", "1e-04"


def check_exact_norms(root, _, __):
    """The same with Python's gradients summed up in f64: torch's own norm adds f32 to f32."""
    ours = [entry["grad_norm"] for entry in entries(our_state(root)["log_history"], "loss")]
    theirs = python_run(root)["norms"]
    need(len(ours) == len(theirs), f"{len(ours)} norms, Python has {len(theirs)}")
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs))
    need(worst <= 1e-5, f"a norm differs by {worst:.1e} of itself")
    return f"{worst:.1e} of {len(ours)}", "1e-05"


def check_counts(root, _, __):
    """Steps, epochs, tokens, learning rates, operations: what is counted, not measured."""
    ours, theirs = our_state(root, last=False)["log_history"], python_run(root)["log"]
    need(len(ours) == len(theirs), f"{len(ours)} entries, Python has {len(theirs)}")
    names = ("step", "epoch", "learning_rate", "num_tokens", "eval_num_tokens", "total_flos")
    count = 0
    for a, b in zip(ours, theirs):
        for name in names:
            if name in b:
                near = name in a and abs(a[name] - b[name]) <= 1e-15 * abs(b[name])
                need(near, f"{name} at step {b['step']} is {a.get(name)}, Python's {b[name]}")
                count += 1
    rates = [entry["learning_rate"] for entry in entries(theirs, "loss")]
    need(len(set(rates)) > 2, "the learning rate does not move")
    return f"{count} values", "exact"


def check_fields(root, _, __):
    """log_history and trainer_state.json have the fields that Trainer writes, and no other."""
    python = python_run(root)
    for ours, theirs in zip(our_state(root, last=False)["log_history"], python["log"], strict=True):
        names = set(theirs) - NOT_OURS
        need(set(ours) == names, f"step {theirs['step']}: fields differ: {sorted(set(ours) ^ names)}")
    ours, theirs = our_state(root), python["state"]
    need(set(ours) == set(theirs), f"fields differ: {sorted(set(ours) ^ set(theirs))}")
    apart = {"log_history", "best_metric", "best_model_checkpoint"}
    for name in set(theirs) - apart:
        need(ours[name] == theirs[name], f"{name} is {ours[name]!r}, Python's {theirs[name]!r}")
    need(Path(ours["best_model_checkpoint"]).name == Path(theirs["best_model_checkpoint"]).name, "another best checkpoint")
    near = abs(ours["best_metric"] - theirs["best_metric"]) <= 1e-5 * theirs["best_metric"]
    need(near, f"best_metric is {ours['best_metric']}, Python's {theirs['best_metric']}")
    kinds = {tuple(sorted(entry)) for entry in ours["log_history"]}
    return f"{len(theirs)} fields, {len(kinds) + 1} kinds of entry", "exact"


def check_adapter(root, _, __):
    """What was trained is the same, all LoRA tensors as one and head and embedding as one."""
    state = our_state(root)
    ours = load_file(root / "twin" / "run" / f"checkpoint-{state['global_step']}" / "adapter_model.safetensors")
    start = load_file(root / "twin" / "init" / "adapter_model.safetensors")
    apart = norms_apart(ours, python_run(root)["adapter"], start, lambda name: ".lora_" in name)
    worst = max(difference / norm for difference, norm, _ in apart)
    need(worst <= 1e-4, f"differs by {worst:.1e} of its norm")
    return f"{worst:.1e}", "1e-04"
