"""Train students: SFT, distillation of logits, GRPO."""
