"""The commands, which the command line and `import twofold` offer, and what they share."""

SUMMARIES = {
    "pretrain": "learn a representation from unlabelled images or speech",
    "evaluate": "measure a frozen encoder: linear probe, neighbours, ImageNet, speech",
    "finetune": "train the encoder further on a few labels, or from scratch",
    "distill": "train a small student on what a teacher says",
    "transfer": "measure an encoder on the papers' 12 other data sets",
    "labels": "how many labels do I need? accuracy against their number",
    "embed": "write features with names to a file, for whatever comes next",
    "convert": "turn an official checkpoint into an encoder of ours",
    "export": "an encoder in the layout of torchvision, MoCo or detectron2",
    "shard": "pack images into tar archives that load fast from any disk",
    "recipes": "list the recipes of the published results",
    "demo-speech": "the same for speech: real voices, five ways",
    "demo": "the whole story on 5,000 real digits, in minutes",
    "study methods": "SimCLR and MoCo v2 at several batch sizes on your data",
    "study finetune": "fine-tuning against labels and head layer, and from scratch",
    "study distillation": "students of teachers of their own and another kind",
    "study classes": "transfer against the number of classes, chance-corrected",
}
"""The commands and what each does, as `twofold --help` lists them; here, where listing them loads nothing else."""
