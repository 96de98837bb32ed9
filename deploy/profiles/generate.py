#!/usr/bin/env python3
"""Writes the fitted profiles of this folder from a table of coefficients.

    deploy/profiles/generate.py fitted_step_coefficients.csv [FOLDER]

The table has one measured system per row: model, system, backend, version, precision, tp, attn_dp,
moe_ep, W_ms, d0_ms_per_req, kappa_us_per_kvtok, prefill_ms_per_tok, fit_quality, n_used, n_total. A
coefficient that came out negative was not identified by the data; it becomes 0, with a comment.
"""
import csv
import os
import sys

# KV bytes of one token in bf16, where the model's published config.json leaves no doubt.
KV_BYTES = {
    "meta-llama/Llama-3.1-8B-Instruct": (131072, "32 layers x 2 x 8 KV heads x 128 x 2 bytes"),
    "Qwen/Qwen3-32B": (262144, "64 layers x 2 x 8 KV heads x 128 x 2 bytes"),
    "Qwen/Qwen3-235B-A22B-FP8": (192512, "94 layers x 2 x 4 KV heads x 128 x 2 bytes"),
    "deepseek-ai/DeepSeek-R1": (70272, "61 layers x (512 + 64) latent values x 2 bytes"),
    "openai/gpt-oss-120b": (73728, "36 layers x 2 x 8 KV heads x 64 x 2 bytes; half the layers "
                                   "only keep a window, so long prompts take less"),
}

# Attention work per prompt token and token before it, for the comment on q: 4 x layers x heads x
# head size operations, at 45 % of the H100's 989.4 dense bf16 TFLOPS.
ATTENTION_OPS = {
    "meta-llama/Llama-3.1-8B-Instruct": 4 * 32 * 32 * 128,
    "Qwen/Qwen3-32B": 4 * 64 * 64 * 128,
}
H100_OPS_PER_MS = 989.4e9 * 0.45


def file_name(row):
    parts = [row["model"].split("/")[-1].lower(), row["system"].replace("_sxm", ""),
             row["backend"] + "-" + row["version"]]
    if row["precision"]:
        parts[2] += "_" + row["precision"]
    parts.append("tp" + row["tp"])
    for key, mark in (("attn_dp", "dp"), ("moe_ep", "ep")):
        if int(row[key]) > 1:
            parts.append(mark + row[key])
    return "_".join(parts) + ".yaml"


def number(value):
    return repr(float("%.12g" % value))


def coefficient(key, value, unit):
    if value < 0:
        return f"  {key}: 0 # fitted {number(value)} {unit}: the data did not identify it\n"
    return f"  {key}: {number(value)}\n"


def profile(row):
    gpus = int(row["tp"]) * int(row["attn_dp"])
    precision = row["precision"] or "bf16"
    out = [f"# {row['model']} on {gpus} {row['system']}, {row['backend']} {row['version']}.\n",
           "# Least-squares fit of TPOT = W + d0*B + k*B*(ISL + OSL/2) + p*B*ISL/OSL to measured\n",
           "# closed-loop runs (NVIDIA aiconfigurator, silicon_sample.csv, Apache-2.0), without the\n",
           "# points past KV saturation.\n"]
    attention = ATTENTION_OPS.get(row["model"])
    if float(row["prefill_ms_per_tok"]) >= 0:
        out.append("# q is 0: p holds the attention of the prompt lengths measured (about 1,000 to 8,000\n"
                   "# tokens), so much longer prompts come out too fast.\n")
    else:
        out.append("# Prefill was not identified and costs nothing here: good for TPOT, not for TTFT.\n")
    if attention and row["system"] == "h100_sxm":
        q = attention / (H100_OPS_PER_MS * int(row["tp"]))
        out.append(f"# For prompts of tens of thousands of tokens: by the roofline q is {q:.3g}; with it,\n"
                   f"# lower p by q*ISL/2 of the measured lengths (1,024 to 4,096).\n")
    if int(row["attn_dp"]) > 1:
        out.append(f"# Attention is data parallel: set dp_size: {row['attn_dp']} in engine.\n")
    out.append(f"source: \"fit, {row['fit_quality']}, {row['n_used']} of {row['n_total']} points\"\n")
    out.append(f"model: \"{row['model']}\"\nsystem: \"{row['system']}\"\n")
    out.append(f"engine: \"{row['backend']}\"\nversion: \"{row['version']}\"\n")
    out.append(f"precision: \"{precision}\"{'' if row['precision'] else ' # not stated in the data'}\n")
    out.append(f"tp: {row['tp']}\ngpus: {gpus}\n")
    if row["model"] in KV_BYTES:
        value, why = KV_BYTES[row["model"]]
        out.append(f"kv_bytes_per_token: {value} # {why}; half with an fp8 KV cache\n")
    else:
        out.append("# kv_bytes_per_token: not known; set it in the stack before moving KV\n")
    out.append("step:\n  form: linear\n")
    out.append(coefficient("w_ms", float(row["W_ms"]), "ms"))
    out.append(coefficient("d0_ms_per_req", float(row["d0_ms_per_req"]), "ms"))
    out.append(coefficient("k_ms_per_tok", float(row["kappa_us_per_kvtok"]) / 1000, "ms"))
    out.append(coefficient("p_ms_per_tok", float(row["prefill_ms_per_tok"]), "ms"))
    out.append("  q_ms_per_tok2: 0\n")
    return "".join(out)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = sys.argv[2] if len(sys.argv) == 3 else os.path.dirname(os.path.abspath(__file__))
    seen = set()
    with open(sys.argv[1], encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            name = file_name(row)
            if name in seen:
                sys.exit(f"{name}: two rows of the table have this name")
            seen.add(name)
            with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
                out.write(profile(row))
    print(f"{len(seen)} profiles in {folder}")


if __name__ == "__main__":
    main()
