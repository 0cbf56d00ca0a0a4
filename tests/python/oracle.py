"""What Python's libraries make of the files this crate writes: one row a check, non-zero if one fails.

    oracle.py DIR [--tolerance 1e-4]

DIR, as `cargo run --release -p emoji_lab --example export_for_python -- DIR` fills it:

    base/            the tied base model: a transformers folder with tokenizer and chat template
    adapter_tied/    PEFT adapter folders trained on base/; in the tied form head and embedding
    adapter_untied/  are one trained tensor, in the untied form two
    merged_tied/     those adapters merged into base/: transformers folders, whole
    merged_untied/
    logs/            trainer_state.json of a run that was taken up from a checkpoint in its middle,
                     and, anywhere below, its TensorBoard event files
    twin/            a short run that Python repeats; see twin.py

The merged folders hold `ours.json` too: chats with the greedy answers that we give.

Each of the five model folders also holds `ours.safetensors`: what our own f32 forward computes
for that model, or for that adapter on base/.

    input_ids       [rows, tokens], any integer type
    attention_mask  [rows, tokens], optional: 0 on right padding, whose logits are not compared
    logits          [rows, tokens, vocabulary], F32
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline
from transformers.trainer_callback import TrainerState
from transformers.utils import logging as transformers_logging

import twin
from need import Failed, need

transformers_logging.disable_progress_bar()


def load_model(folder):
    """The model in f32, with every key of the file used and none made up."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        need(not info.get(kind), f"{kind}: {sorted(info.get(kind) or [])[:3]}")
    return model.eval()


def worst_logit(model, folder):
    """Largest absolute difference between the model's logits and ours."""
    ours = load_file(folder / "ours.safetensors")
    ids, want = ours["input_ids"].long(), ours["logits"]
    mask = ours.get("attention_mask", torch.ones_like(ids)).long()
    with torch.no_grad():
        got = model(input_ids=ids, attention_mask=mask).logits
    need(got.shape == want.shape, f"logits have shape {tuple(want.shape)}, Python's {tuple(got.shape)}")
    rows = mask.bool()
    need(torch.isfinite(want[rows]).all(), "our logits are not finite")
    return (got[rows] - want[rows]).abs().max().item()


def logits_agree(model, folder, tolerance):
    error = worst_logit(model, folder)
    need(error <= tolerance, f"logits differ by {error:.1e}")
    return f"{error:.1e}", f"{tolerance:.0e}"


def load_adapter(root, form):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load_model(root / "base"), str(root / f"adapter_{form}"))
    loading = [str(w.message) for w in caught if "keys while loading" in str(w.message)]
    need(not loading, "; ".join(loading)[:200])
    return model.eval()


def head_and_embedding(model):
    return model.get_output_embeddings().weight, model.get_input_embeddings().weight


# --- adapters -------------------------------------------------------------------------------


def check_base_logits(root, _, tolerance):
    return logits_agree(load_model(root / "base"), root / "base", tolerance)


def check_adapter_tensors(root, form, _):
    """Every tensor of the file is in the PEFT model, value for value, and no other is."""
    model = load_adapter(root, form)
    file = load_file(root / f"adapter_{form}" / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = get_peft_model_state_dict(model)
    need(set(file) == set(held), f"names differ: {sorted(set(file) ^ set(held))[:3]}")
    for name, tensor in file.items():
        need(torch.equal(held[name].float(), tensor.float()), f"{name} has other values in PEFT")
    return f"{len(file)} equal", "exact"


def fresh_peft(root, settings, tied):
    """What PEFT makes of the settings as a person would write them in Python."""
    lora = LoraConfig(
        r=settings["r"], lora_alpha=settings["lora_alpha"], lora_dropout=settings["lora_dropout"],
        target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"], bias="none",
        task_type="CAUSAL_LM", ensure_weight_tying=tied,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(load_model(root / "base"), lora)


def check_adapter_config(root, form, _):
    """adapter_config.json is what PEFT itself writes for these settings, field by field."""
    ours = json.loads((root / f"adapter_{form}" / "adapter_config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fresh_peft(root, ours, form == "tied").save_pretrained(folder)
        theirs = json.loads((Path(folder) / "adapter_config.json").read_text())
    need(set(ours) == set(theirs), f"fields differ: {sorted(set(ours) ^ set(theirs))}")
    for name, want in theirs.items():
        got = ours[name]
        if name == "peft_version":
            continue  # the release that runs here need not be the one whose files ours equal
        if name == "base_model_name_or_path":
            got, want = Path(got).name, Path(want).name  # a folder may have moved since
        if isinstance(want, list):  # PEFT keeps sets
            got, want = sorted(got), sorted(want)
        need(got == want, f"{name} is {got!r}, PEFT writes {want!r}")
    need(ours["ensure_weight_tying"] == (form == "tied"), "ensure_weight_tying does not say the form")
    return f"{len(theirs)} fields", "exact"


def check_adapter_logits(root, form, tolerance):
    return logits_agree(load_adapter(root, form), root / f"adapter_{form}", tolerance)


def check_adapter_tying(root, form, _):
    head, embedding = head_and_embedding(load_adapter(root, form))
    one = head.data_ptr() == embedding.data_ptr()
    if form == "tied":
        need(one or torch.equal(head, embedding), "head and embedding are two in PEFT")
    else:
        need(not one and not torch.equal(head, embedding), "head and embedding are one in PEFT")
    return form, "exact"


# --- merged models --------------------------------------------------------------------------


def check_merged_logits(root, form, tolerance):
    return logits_agree(load_model(root / f"merged_{form}"), root / f"merged_{form}", tolerance)


def check_merged_is_adapter(root, form, tolerance):
    """The merged folder computes what the adapter on its base does, in Python and in ours."""
    merged = root / f"merged_{form}"
    error = worst_logit(load_adapter(root, form), merged)
    need(error <= tolerance, f"adapter on base differs from merged by {error:.1e}")
    return f"{error:.1e}", f"{tolerance:.0e}"


def check_merged_weights(root, form, _):
    """Every weight is what PEFT's merge_and_unload makes of the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = load_adapter(root, form).merge_and_unload()
    ours = load_model(root / f"merged_{form}").state_dict()
    worst, tolerance = 0.0, 1e-6
    for name, want in theirs.state_dict().items():
        need(name in ours, f"no {name}")
        worst = max(worst, ((ours[name] - want).norm() / want.norm().clamp_min(1e-12)).item())
    need(worst <= tolerance, f"a weight differs by {worst:.1e} of its norm")
    return f"{worst:.1e}", f"{tolerance:.0e}"


def check_merged_reload(root, form, tolerance):
    """Saved by Python and loaded again it is the same model, its head included."""
    folder = root / f"merged_{form}"
    model = load_model(folder)
    need(model.config.tie_word_embeddings == (form == "tied"), "tie_word_embeddings does not say the form")
    head, embedding = head_and_embedding(model)
    need((head.data_ptr() == embedding.data_ptr()) == (form == "tied"), "the head is tied otherwise than said")
    with tempfile.TemporaryDirectory() as copy:
        model.save_pretrained(copy)
        return logits_agree(load_model(Path(copy)), folder, tolerance)


def check_merged_pipeline(root, form, _):
    """The folder alone answers chats, word for word as we do."""
    folder = root / f"merged_{form}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    need(tokenizer.chat_template, "the tokenizer has no chat template")
    generation = GenerationConfig.from_pretrained(folder)
    need(generation.eos_token_id is not None, "generation_config.json has no eos_token_id")
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    if end_of_turn != tokenizer.unk_token_id:
        need(end_of_turn in generation.eos_token_id, "an answer does not end at <end_of_turn>")
    pipe = pipeline("text-generation", model=str(folder), tokenizer=str(folder), device="cpu")
    ours = json.loads((folder / "ours.json").read_text())
    need(len({chat["answer"] for chat in ours}) > 1, "all our answers are the same: too little to compare")
    for chat in ours:
        out = pipe(chat["messages"], max_new_tokens=chat["max_new_tokens"], do_sample=False)
        answer = out[0]["generated_text"][-1]
        need(answer["role"] == "assistant", f"answered {out!r}")
        got = answer["content"].strip()
        need(got == chat["answer"], f"answered {got!r}, we {chat['answer']!r}")
    return f"{len(ours)} answers", "exact"


# --- logs -----------------------------------------------------------------------------------


def check_trainer_state(root, _, __):
    state = TrainerState.load_from_json(str(root / "logs" / "trainer_state.json"))
    need(state.log_history, "log_history is empty")
    need(state.global_step > 0 and state.max_steps >= state.global_step, "steps do not add up")
    need(any("loss" in e for e in state.log_history), "no entry has a training loss")
    need(any("eval_loss" in e for e in state.log_history), "no entry has an eval_loss")
    for entry in state.log_history:
        need({"epoch", "step"} <= set(entry), f"an entry lacks epoch or step: {entry}")
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "trainer_state.json"
        state.save_to_json(str(again))
        ours = json.loads((root / "logs" / "trainer_state.json").read_text())
        need(json.loads(again.read_text()) == ours, "Python writes other fields than it read")
    return f"{len(state.log_history)} entries", "exact"


def check_events(root, _, __):
    """Each number of the log history is in the event files, at its step, under HF's tag."""
    history = json.loads((root / "logs" / "trainer_state.json").read_text())["log_history"]
    folders = {path.parent for path in (root / "logs").rglob("events.out.tfevents.*")}
    need(folders, "no event file")
    found = {}
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                found.setdefault((tag, event.step), []).append(event.value)
    tags = {tag for tag, _ in found}
    for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "eval/loss"):
        need(tag in tags, f"no {tag}")
    need(any(tag.endswith("/num_tokens") for tag in tags), "no count of tokens")
    logged = {}
    for entry in history:
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)):
                tag = "eval/" + name[5:] if name.startswith("eval_") else "train/" + name
                logged.setdefault((tag, entry["step"]), []).append(value)
    # As often as logged: what a resumed run logs again replaces what was there.
    need(set(found) == set(logged), f"not in both: {sorted(set(found) ^ set(logged))[:3]}")
    for (tag, step), values in logged.items():
        there = found[tag, step]
        near = len(there) == len(values) and all(map(lambda a, b: math.isclose(a, b, rel_tol=1e-6), there, values))
        need(near, f"{tag} at step {step} is {there}, logged {values}")
    return f"{sum(map(len, logged.values()))} values", "f32"


# --- training -------------------------------------------------------------------------------


def check_start(root, _, __):
    """A and B before the first step are drawn as PEFT draws them."""
    init = root / "twin" / "init"
    ours = load_file(init / "adapter_model.safetensors")
    settings = json.loads((init / "adapter_config.json").read_text())
    torch.manual_seed(0)
    theirs = get_peft_model_state_dict(fresh_peft(root, settings, True))
    need(set(ours) == set(theirs), f"names differ: {sorted(set(ours) ^ set(theirs))[:3]}")
    # One uniform law a width: the layers of a width are taken together, for the numbers to be many.
    drawn = {}
    for name, tensor in theirs.items():
        need(ours[name].shape == tensor.shape, f"{name} has shape {tuple(ours[name].shape)}")
        if "lora_A" in name:
            pair = drawn.setdefault(tensor.shape[1], ([], []))
            pair[0].append(ours[name].flatten())
            pair[1].append(tensor.flatten())
        else:  # B is zero, head and embedding are the base's
            need(torch.equal(ours[name], tensor.float()), f"{name} starts with other values")
    for width, (a, b) in drawn.items():
        a, b = torch.cat(a), torch.cat(b)
        need(len(a) > 2000, f"only {len(a)} numbers of width {width}")
        # kaiming_uniform_(a=sqrt(5)): within 1/sqrt(width), with both ends reached.
        for ours_is, theirs_is, what in ((a.max(), b.max(), "highest"), (a.min(), b.min(), "lowest")):
            need(abs(ours_is / theirs_is - 1) < 0.01, f"width {width}: {what} is {ours_is:.4f}, PEFT's {theirs_is:.4f}")
        need(a.abs().max() <= width**-0.5, f"width {width}: beyond 1/sqrt(width)")
        # A quarter of the numbers in each quarter of the range; five standard deviations.
        quarters = torch.histc(a * width**0.5, bins=4, min=-1, max=1) / len(a)
        slack = 5 * (3 / 16 / len(a)) ** 0.5
        need((quarters - 0.25).abs().max() < slack, f"width {width}: uneven, {quarters.tolist()}")
    firsts = [ours[name] for name in ours if name.endswith("q_proj.lora_A.weight")]
    need(not torch.equal(firsts[0], firsts[1]), "two layers start with the same A")
    return f"{len(ours)} tensors", "1% of the range"


FORMS = ("tied", "untied")
CHECKS = [
    ("base: logits", check_base_logits, (None,), "base"),
    ("adapter: every tensor in PEFT", check_adapter_tensors, FORMS, "adapter_{}"),
    ("adapter: adapter_config.json", check_adapter_config, FORMS, "adapter_{}"),
    ("adapter: PeftModel logits", check_adapter_logits, FORMS, "adapter_{}"),
    ("adapter: head and embedding", check_adapter_tying, FORMS, "adapter_{}"),
    ("merged: keys and logits", check_merged_logits, FORMS, "merged_{}"),
    ("merged: adapter on base", check_merged_is_adapter, FORMS, "merged_{}"),
    ("merged: PEFT's merge", check_merged_weights, FORMS, "merged_{}"),
    ("merged: saved and loaded again", check_merged_reload, FORMS, "merged_{}"),
    ("merged: pipeline", check_merged_pipeline, FORMS, "merged_{}"),
    ("trainer_state.json", check_trainer_state, (None,), "logs"),
    ("TensorBoard events", check_events, (None,), "logs"),
    ("start: A and B", check_start, (None,), "twin"),
    ("learning rates", twin.check_schedules, (None,), "twin"),
    ("row order", twin.check_order, (None,), "twin"),
    ("batches: labels, padding, cut", twin.check_batches, (None,), "twin"),
    ("batches: answers alone", twin.check_answers, (None,), "twin"),
    ("batches: several answers", twin.check_talks, (None,), "twin"),
    ("run: losses", twin.check_losses, (None,), "twin"),
    ("run: grad_norm", twin.check_norms, (None,), "twin"),
    ("run: grad_norm, summed in f64", twin.check_exact_norms, (None,), "twin"),
    ("run: learning rates and counts", twin.check_counts, (None,), "twin"),
    ("run: fields of trainer_state.json", twin.check_fields, (None,), "twin"),
    ("run: last checkpoint's adapter", twin.check_adapter, (None,), "twin"),
    ("rows that occur: losses", twin.check_rows_losses, (None,), "twin/rows"),
    ("rows that occur: adapter", twin.check_rows_adapter, (None,), "twin/rows"),
    ("full run: losses", twin.check_full_losses, (None,), "twin/full"),
    ("full run: weights and norms", twin.check_full_weights, (None,), "twin/full"),
]


def run_checks(root, tolerance=1e-4, only=None):
    """Every check, or the one titled `only`, as (title, verdict, measured, tolerance or reason)."""
    rows = []
    for name, check, forms, needs in CHECKS:
        for form in forms:
            title = f"{name}, {form}" if form else name
            if only not in (None, title):
                continue
            if not (root / needs.format(form)).is_dir():
                rows.append((title, "FAIL", "", f"no {needs.format(form)}/ in {root}"))
                continue
            try:
                rows.append((title, "ok", *check(root, form, tolerance)))
            except Failed as short:
                rows.append((title, "FAIL", "", str(short)))
            except Exception as error:  # a library refusing a file is a failed check, not a crash
                where = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                rows.append((title, "FAIL", "", " ".join(reason.split())[:300]))
    return rows


def quiet():
    """Nothing but the table."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")


def print_table(rows):
    rows = [("check", "", "measured", "tolerance"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for i, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("| " + " | ".join([*cells, row[3]]) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|---|")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit")
    args = parser.parse_args()
    if not args.dir.is_dir():
        parser.error(f"{args.dir} is not a folder")
    quiet()
    rows = run_checks(args.dir, args.tolerance)
    print_table(rows)
    failed = sum(row[1] != "ok" for row in rows)
    print(f"\nPython: {len(rows) - failed} checks passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
