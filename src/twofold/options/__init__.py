"""Options as frozen dataclasses: merged from layers, checked by name and type, refused where they have no effect.

An option lives beside the class that it configures. Where it applies is declared once, at its field:

- `option(default, when={"name": ("lars", "sgd")})`: only with these values of another field of its group;
- `option(default, when={"kind": ("audio",)})`: only for this kind of data (any word that `refuse_unused` is told);
- a group of options whose class one of them chooses is a `Variant`: each class has its own fields.

One function, `refuse_unused`, reads the declarations and raises.
"""

from twofold.options.declared import GIVEN, Leaf, as_written, explanation, is_group, option
from twofold.options.nested import flatten, given, merge, plain, upgraded
from twofold.options.parsing import OptionsParser, add_options, check_names, explain, texts_alone
from twofold.options.variants import Variant, fields_of, leaves, no_effect, refuse_unused

__all__ = [
    "GIVEN", "Leaf", "OptionsParser", "Variant", "add_options", "as_written", "check_names", "explain", "explanation",
    "fields_of", "flatten", "given", "is_group", "leaves", "merge", "no_effect", "option", "plain", "refuse_unused",
    "texts_alone", "upgraded",
]  # fmt: skip
