#!/bin/sh
# Quantize a small DeepSeek-V3 from BF16 to FP8 and check the result; all files go into demo/.
set -e
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
step() {
    printf '\n$ %s\n' "$*"
    "$@"
}
rm -rf demo
mkdir demo
echo "a DeepSeek-V3 of 5 million parameters, with MTP layer, in BF16"
step python scripts/make_checkpoint.py tiny-aligned demo/bf16
step dstools inspect demo/bf16
step dstools quantize demo/bf16 demo/fp8
step dstools verify demo/fp8 --source demo/bf16
step dstools compare demo/bf16 demo/fp8
cat <<'EOF'

Next, on a checkpoint of your own:
  .venv/bin/dstools inspect SOURCE                     what it holds, from its headers
  .venv/bin/dstools quantize SOURCE OUT --dry-run      what would be written, by role and rule
  .venv/bin/dstools quantize SOURCE OUT                do it; interrupted, the same command resumes
  .venv/bin/dstools verify OUT --source SOURCE --engine vllm --tp 8
EOF
