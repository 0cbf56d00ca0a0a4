"""Makes tests/fixtures/peft: adapters of every kind on a tiny Gemma 3, and what PEFT merges them to.

    python tests/python/make_peft.py        (torch, transformers, peft; see requirements.txt)

The base's weights follow from a formula that tests/adapters.rs has too, so that only adapters are
committed. Each folder is what `save_pretrained` wrote, some edited as other tools write them; expected.json
holds, for every weight of the merged model, its norm, its sum and three values.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "peft"
CONFIG = dict(
    vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, max_position_embeddings=64,
    rope_theta=1e6, rope_local_base_freq=1e4, layer_types=["sliding_attention", "full_attention"],
    pad_token_id=0, eos_token_id=1, bos_token_id=2, hidden_activation="gelu_pytorch_tanh",
)


def base(tied=True):
    model = Gemma3ForCausalLM(Gemma3TextConfig(tie_word_embeddings=tied, **CONFIG)).float()
    names = sorted(name for name, _ in model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            k = torch.arange(parameter.numel(), dtype=torch.float64)
            values = torch.sin(0.37 * k + 1.3 * names.index(name)) * 0.2
            parameter.copy_(values.reshape(parameter.shape).float())
    return model


def fill(model, seed=7):
    """Values for everything that an adapter trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                value = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(value.abs() + 0.5 if "magnitude" in name else value)


def summary(tensor):
    flat = tensor.detach().double().flatten()
    return [flat.norm().item(), flat.sum().item(), flat[0].item(), flat[len(flat) // 2].item(), flat[-1].item()]


def merged(model):
    """The merged weights; a head only where it is not the embedding."""
    out = model.merge_and_unload()
    state = {name: tensor for name, tensor in out.state_dict().items() if name != "lm_head.weight"}
    head, embedding = out.get_output_embeddings().weight, out.get_input_embeddings().weight
    if not torch.equal(head, embedding):
        state["lm_head.weight"] = head
    return {name: summary(tensor) for name, tensor in state.items()}


def rows_apart(model):
    """Head and embedding as the adapter computes with them. `merge_and_unload` writes the rows of both into the
    one tensor of a tied base, which is another model than the one that was trained."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    whole = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    return {name: summary(module.token_adapter.get_merged_weights(["default"])) for name, module in whole.items()}


def edit(folder, config=None, tensors=None):
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields.update(config or {})
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, default=sorted))
    if tensors:
        file = folder / "adapter_model.safetensors"
        save_file(tensors(load_file(file)), file)


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


KINDS = {
    "suffixes": dict(target_modules=["self_attn.q_proj", "self_attn.v_proj"]),
    "full-names": dict(target_modules=["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]),
    "regex": dict(target_modules=r".*\.layers\.1\.self_attn\.(q|v)_proj"),
    "layers": dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    "layers-pattern": dict(target_modules=["o_proj"], layers_to_transform=0, layers_pattern="layers"),
    "excluded": dict(target_modules="all-linear", exclude_modules=["lm_head", "layers.0.mlp.up_proj", "o_proj"]),
    "patterns": dict(target_modules=["q_proj", "k_proj", "v_proj"], rank_pattern={"layers.0.self_attn.q_proj": 2},
                     alpha_pattern={"v_proj": 3, "k_proj": 5}),
    "rslora": dict(target_modules=["gate_proj"], use_rslora=True),
    "rslora-patterns": dict(target_modules=["q_proj"], use_rslora=True, rank_pattern={"1.self_attn.q_proj": 1}),
    "dora": dict(target_modules=["q_proj", "down_proj"], use_dora=True),
    "bias-all": dict(target_modules=["q_proj"], bias="all"),
    "embed-only": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "head-only": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "both": dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "both-tied": dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True),
    "token-rows": dict(target_modules=["q_proj"], trainable_token_indices=[7, 3, 20]),
    "token-rows-by-module": dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7, 3]}),
    "token-rows-both": dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 5], "lm_head": [1, 5]}),
    "token-rows-apart": dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [9]}),
    "init-only": dict(target_modules=["q_proj"], init_lora_weights="gaussian"),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    expected = {"base": {name: summary(tensor) for name, tensor in base().state_dict().items() if name != "lm_head.weight"}}
    for kind, settings in KINDS.items():
        torch.manual_seed(0)
        folder = OUT / kind
        model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
        fill(model)
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        # What is read back is what counts: save_pretrained leaves things out.
        expected[kind] = merged(PeftModel.from_pretrained(base(), folder))
        if kind == "token-rows-apart":
            expected[kind] |= rows_apart(PeftModel.from_pretrained(base(), folder))
        edit(folder, {"base_model_name_or_path": "tiny"})

    def copy(kind, of):
        shutil.copytree(OUT / of, OUT / kind)
        expected[kind] = expected[of]
        return OUT / kind

    # As other tools and releases write the same adapter.
    edit(copy("multimodal", "suffixes"), tensors=renamed(lambda n: n.replace("model.layers", "model.language_model.layers")))
    edit(copy("multimodal-old", "suffixes"), tensors=renamed(lambda n: n.replace("model.layers", "language_model.model.layers")))
    edit(copy("vision-beside", "suffixes"), tensors=lambda tensors: {
        **tensors,
        "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 2)})
    edit(copy("named-adapter", "suffixes"), tensors=renamed(lambda n: n.replace(".weight", ".emoji.weight")))
    unsloth = r"(?:.*?(?:language|text).*?(?:self_attn).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:q_proj|v_proj)))"
    edit(copy("regex-unsloth", "suffixes"), {"target_modules": unsloth, "unsloth_version": None})
    edit(copy("training-only", "suffixes"), {
        "megatron_config": {"a": 1}, "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}, "lora_dropout": 0.3,
        "task_type": None, "fan_in_fan_out": True, "runtime_config": {"ephemeral_gpu_offload": False}, "peft_version": "9.9"})
    old = copy("old-release", "suffixes")
    fields = json.loads((old / "adapter_config.json").read_text())
    kept = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
            "modules_to_save", "peft_type", "r", "target_modules", "task_type")
    (old / "adapter_config.json").write_text(json.dumps({name: fields[name] for name in kept}, indent=2))
    half = OUT / "bf16"
    shutil.copytree(OUT / "suffixes", half)
    edit(half, tensors=lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    expected["bf16"] = merged(PeftModel.from_pretrained(base(), half))
    # An embedding saved beside an adapter that did not train it.
    beside = OUT / "embedding-beside"
    shutil.copytree(OUT / "suffixes", beside)
    edit(beside, tensors=lambda tensors: {
        **tensors, "base_model.model.model.embed_tokens.weight": base().get_input_embeddings().weight.detach() * 1.5})
    expected["embedding-beside"] = merged(PeftModel.from_pretrained(base(), beside))
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file()), "bytes,", len(expected), "kinds")


if __name__ == "__main__":
    main()
