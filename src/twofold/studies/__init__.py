"""The papers' questions asked of your own data: each study is many runs or fits, a table, a plot and a report.

A new study is a file with a subclass of `twofold.studies.base.Study`, and a line in `STUDIES`.
"""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """A study as `twofold --help` lists it: the module and class that hold it, and its question."""

    place: str
    summary: str


STUDIES: dict[str, Line] = {
    "methods": Line("twofold.studies.methods:MethodsStudy", "SimCLR and MoCo v2 at several batch sizes on your data"),
    "finetune": Line(
        "twofold.studies.finetuning:FinetuneStudy", "fine-tuning against labels and head layer, and from scratch"
    ),
    "distillation": Line(
        "twofold.studies.distilling:DistillStudy", "students of teachers of their own and another kind"
    ),
    "distill-targets": Line(
        "twofold.studies.targets:TargetsStudy", "labels, a teacher or both for students of some sizes (v2's Table 2)"
    ),
    "augmentations": Line(
        "twofold.studies.ablating:AugmentationsStudy", "operators on one view, one by one and composed (figure 5)"
    ),
    "views": Line(
        "twofold.studies.viewing:ViewingStudy", "what operators do to images, and histograms of crops (figures 4 and 6)"
    ),
    "color": Line(
        "twofold.studies.strengths:StrengthStudy",
        "strength of colour distortion, with and without labels (Table 1)",
    ),
    "transformations": Line(
        "twofold.studies.transformations:TransformationsStudy", "what h keeps of a view and z does not (Table 3)"
    ),
    "heads": Line("twofold.studies.heads:HeadsStudy", "projection heads by kind and size, h against z (figure 8)"),
    "losses": Line(
        "twofold.studies.losses:LossesStudy", "NT-Xent against the losses of Table 4, by their grids, and Table 5"
    ),
    "batch": Line("twofold.studies.ablating:BatchStudy", "batch against length of training (figure 9)"),
    "size": Line(
        "twofold.studies.sizes:SizeStudy", "depth and width of the encoder (figure 7), with few labels (v2's figure 1)"
    ),
    "linear-vs-finetune": Line(
        "twofold.studies.sizes:LinearStudy", "linear evaluation against fine-tuning as nets and epochs grow (B.7)"
    ),
    "head-depth": Line(
        "twofold.studies.second:DepthStudy", "layers of the head by where fine-tuning starts (SimCLR v2)"
    ),
    "memory": Line("twofold.studies.second:MemoryStudy", "SimCLR v2 with and without its memory"),
    "moco": Line(
        "twofold.studies.moco:MocoStudy", "from MoCo to MoCo v2 (its Table 1), its temperature, momentum and queue"
    ),
    "speech": Line("twofold.studies.speech:SpeechStudy", "contrast, reconstruction and both, by views of recordings"),
    "suppression": Line(
        "twofold.studies.suppression:SuppressionStudy", "random bits or digits that both views share, against classes"
    ),
    "classes": Line("twofold.studies.classes:ClassesStudy", "transfer against the number of classes, chance-corrected"),
}
"""The studies of `twofold study`; here, where listing them loads nothing else."""
