"""The kinds of run: pretraining, fine-tuning, distillation."""
