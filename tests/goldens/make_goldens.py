#!/usr/bin/env python3
"""Write tiny random checkpoints in Hugging Face layout and the logits that `transformers` gives for them.

    python make_goldens.py OUT [NAME ...]

Needs torch (CPU is enough), transformers >= 5.19, safetensors, tokenizers.
For each NAME a folder OUT/NAME holds
  config.json, generation_config.json, model.safetensors (bf16), tokenizer.json
  golden.json         prompts (token ids), greedy continuations, smallest top-1 margin of each continuation
  logits.safetensors  "prompt{i}": f32 [prompt_len, vocab], from the bf16 weights computed in f32
Weights are drawn wide (initializer_range 0.2) so that routing is uneven and top-1 margins are real.
"""
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 512
COMMON = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
              bos_token_id=0, eos_token_id=0, pad_token_id=0)
SPECS = {
    "mixtral": ("mixtral", dict(COMMON, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)),
    "qwen3_moe": ("qwen3_moe", dict(COMMON, head_dim=32, intermediate_size=128, moe_intermediate_size=48,
                                    num_experts=16, num_experts_per_tok=4, norm_topk_prob=True)),
    "qwen2_moe": ("qwen2_moe", dict(COMMON, intermediate_size=128, moe_intermediate_size=48,
                                    shared_expert_intermediate_size=96, num_experts=8, num_experts_per_tok=2)),
    "olmoe": ("olmoe", dict(COMMON, num_key_value_heads=4, intermediate_size=48, num_experts=16, num_experts_per_tok=4)),
    "deepseek_v3": ("deepseek_v3", dict(COMMON, num_key_value_heads=4, num_hidden_layers=4, intermediate_size=128,
                                        moe_intermediate_size=48, n_routed_experts=16, num_experts_per_tok=4,
                                        n_group=4, topk_group=2, n_shared_experts=1, first_k_dense_replace=1,
                                        q_lora_rank=32, kv_lora_rank=24, qk_rope_head_dim=16, qk_nope_head_dim=16,
                                        v_head_dim=16, routed_scaling_factor=2.5, norm_topk_prob=True)),
    "glm4_moe": ("glm4_moe", dict(COMMON, head_dim=32, intermediate_size=128, moe_intermediate_size=48,
                                  n_routed_experts=16, num_experts_per_tok=4, n_group=1, topk_group=1,
                                  n_shared_experts=1, first_k_dense_replace=1, use_qk_norm=True)),
    # What published models set and the ones above do not.
    "deepseek_v3_yarn": ("deepseek_v3", dict(COMMON, num_key_value_heads=4, num_hidden_layers=2, intermediate_size=64,
                                             moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
                                             n_group=1, topk_group=1, n_shared_experts=2, first_k_dense_replace=1,
                                             q_lora_rank=None, kv_lora_rank=24, qk_rope_head_dim=16, qk_nope_head_dim=24,
                                             v_head_dim=20, norm_topk_prob=True, attention_bias=True,
                                             rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=8.0,
                                                                  beta_fast=32, beta_slow=1, mscale=0.7, mscale_all_dim=1.3,
                                                                  original_max_position_embeddings=64))),
    "qwen3_moe_mixed": ("qwen3_moe", dict(COMMON, head_dim=32, intermediate_size=64, moe_intermediate_size=32, num_experts=8,
                                          num_experts_per_tok=2, num_hidden_layers=4, decoder_sparse_step=2,
                                          mlp_only_layers=[1], tie_word_embeddings=True, attention_bias=True,
                                          rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0,
                                                               low_freq_factor=1.0, high_freq_factor=4.0,
                                                               original_max_position_embeddings=64))),
    "olmoe_clipped": ("olmoe", dict(COMMON, intermediate_size=32, num_experts=8, num_experts_per_tok=2,
                                    num_hidden_layers=2, clip_qkv=0.8, norm_topk_prob=True)),
}
TEXT = ("Experts wait in queues and tokens wander between them; no barrier holds the quick back for the slow. "
        "A router picks a few experts for every token, and the busy ones earn a second replica. ") * 40
PROMPTS = ["Experts wait in queues", "A router picks a few experts for every token, and",
           "no barrier holds the quick back for the slow. The tokens wander between them and"]


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<|end|>"], show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def build(name, kind, spec, out, seed):
    torch.manual_seed(seed)
    cfg = AutoConfig.for_model(kind, **spec)
    model = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).eval()
    for p_name, p in model.named_parameters():           # norms and biases away from their trivial values
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.7, 1.3) if "norm" in p_name else torch.nn.init.normal_(p, 0, 0.1)
    for b_name, b in model.named_buffers():              # DeepSeek / GLM routing bias is a buffer
        if "e_score_correction_bias" in b_name:
            b.normal_(0, 0.2)
    model = model.to(torch.bfloat16)
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(d, safe_serialization=True)
    tok = tokenizer()
    tok.save(str(d / "tokenizer.json"))
    ref = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32).eval()
    golden, logits = [], {}
    with torch.inference_mode():
        for i, text in enumerate(PROMPTS):
            ids = torch.tensor([tok.encode(text).ids])
            logits[f"prompt{i}"] = ref(ids).logits[0].float().contiguous()
            cur, cache, greedy, margin = ids, None, [], 1e9
            for _ in range(32):
                o = ref(cur, past_key_values=cache, use_cache=True)
                cache = o.past_key_values
                top = o.logits[0, -1].topk(2)
                margin = min(margin, float(top.values[0] - top.values[1]))
                cur = top.indices[:1].view(1, 1)
                greedy.append(int(cur))
            golden.append(dict(text=text, prompt=ids[0].tolist(), greedy=greedy, min_margin=round(margin, 4)))
    save_file(logits, d / "logits.safetensors")
    (d / "golden.json").write_text(json.dumps(dict(architecture=ref.__class__.__name__, transformers=transformers.__version__,
                                                   torch=torch.__version__, seed=seed, cases=golden), indent=1))
    size = sum(f.stat().st_size for f in d.iterdir()) // 1024
    print(f"{name:14s} {ref.__class__.__name__:24s} {size:5d} KiB  margins", [c["min_margin"] for c in golden], "std", round(float(logits["prompt0"].std()), 2))


if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(SPECS)
    for n in names:
        build(n, *SPECS[n], out, seed=20)
