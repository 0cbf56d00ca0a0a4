"""A TRL run that trains every parameter, in f32 on a CPU, for `tests/golden_numbers` to replay.

    python make_whole_run.py GOLDEN OUT

GOLDEN is the folder of golden numbers (its `model/`, and the rows of `lora_untied/`). OUT gets
`trace.json`, `batches.safetensors` with every batch as the model saw it, and the values at the end in
`final/model.safetensors`. `requirements.txt` beside this file names the packages.
"""

import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

golden, out = sys.argv[1], sys.argv[2]
torch.manual_seed(0)
rows = json.load(open(f"{golden}/lora_untied/trace.json"))
model = Gemma3ForCausalLM.from_pretrained(f"{golden}/model", dtype=torch.float32, attn_implementation="eager")
# Rows are ids already: of the tokenizer the trainer wants no more than which of them pads.
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(model.config.vocab_size)}, unk_token="t3"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="t0", eos_token="t1", bos_token="t2", unk_token="t3"
)
args = {
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
}
batches = {}


class Kept(SFTTrainer):
    """Keeps every batch that is trained on."""

    def compute_loss(self, model, inputs, *rest, **named):
        if model.training:
            number = len(batches) // 3
            for key in ("input_ids", "attention_mask", "labels"):
                batches[f"{number:03d}.{key}"] = inputs[key].clone().to(torch.int64).contiguous()
        return super().compute_loss(model, inputs, *rest, **named)


def dataset(key):
    return Dataset.from_list([{"input_ids": list(ids)} for ids in rows[key]])


trainer = Kept(
    model=model,
    args=SFTConfig(
        output_dir=f"{out}/run",
        lr_scheduler_type="constant",
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        seed=42,
        gradient_checkpointing=False,
        max_length=None,
        optim="adamw_torch",
        dataset_kwargs={"skip_prepare_dataset": True},
        **args,
    ),
    train_dataset=dataset("train_rows"),
    eval_dataset=dataset("eval_rows"),
    processing_class=tokenizer,
)
trainer.train()
os.makedirs(f"{out}/final", exist_ok=True)
save_file(batches, f"{out}/batches.safetensors")
values = {name: value.detach().clone().contiguous() for name, value in model.named_parameters()}
save_file(values, f"{out}/final/model.safetensors")
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
trace = {"versions": versions, "quant": False, "tie": True, "whole": True, "args": args}
trace |= {"log_history": trainer.state.log_history}
trace |= {key: rows[key] for key in ("train_rows", "eval_rows")}
with open(f"{out}/trace.json", "w") as file:
    json.dump(trace, file, indent=1, default=float)
