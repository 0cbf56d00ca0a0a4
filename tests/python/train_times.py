"""TRL as a peer of the benchmark `cpu`: takes optimizer steps on the rows that it is given.

usage: train_times.py FOLDER THREADS

  {"do": "start", "tied": true}              a trainer with the notebook's settings: NF4, LoRA on all linear layers,
                                             head and embedding trained (one tensor if tied, PEFT's two if not)
  {"do": "step", "rows": [[ids], …]}         one optimizer step on a batch

Every answer has "seconds"; a step's has "loss" and the most memory that this process had so far, "bytes".
"""

import gc
import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
out = tempfile.TemporaryDirectory()


def start(tied):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", quantization_config=nf4)
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", bias="none", task_type="CAUSAL_LM",
        modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=tied,
    )  # fmt: skip
    config = SFTConfig(
        output_dir=out.name, per_device_train_batch_size=4, max_length=256, learning_rate=5e-5,
        lr_scheduler_type="constant", weight_decay=0.01, optim="adamw_torch_fused", gradient_checkpointing=False,
        use_cpu=True, bf16=False, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=config, peft_config=lora, processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list([{"input_ids": [2, 3, 4]}] * 8),
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what train() sets
    trainer.model.train()
    return trainer


def step(trainer, rows):
    batch = trainer.data_collator([{"input_ids": row} for row in rows])
    loss = trainer.training_step(trainer.model, batch)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss.item()


def most_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


trainer = None
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    started = time.perf_counter()
    if asked["do"] == "start":
        trainer = None
        gc.collect()
        trainer = start(asked["tied"])
        said = {}
    else:
        said = {"loss": step(trainer, asked["rows"]), "bytes": most_memory()}
    print(json.dumps({"seconds": time.perf_counter() - started, **said}), flush=True)
