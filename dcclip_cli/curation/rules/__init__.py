"""What makes a pair unfit for training?

Adding a rule is one place: write the class in a file of this folder, add its name to the union below.
"""

from typing import Annotated

from pydantic import Field

from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.blank import BlankRule
from dcclip_cli.curation.rules.boilerplate import BoilerplateRule
from dcclip_cli.curation.rules.filename import FilenameRule
from dcclip_cli.curation.rules.garbled import GarbledRule
from dcclip_cli.curation.rules.image import ImageRule
from dcclip_cli.curation.rules.language import LanguageRule, language_of
from dcclip_cli.curation.rules.length import LengthRule
from dcclip_cli.curation.rules.markup import MarkupRule
from dcclip_cli.curation.rules.repetition import RepetitionRule
from dcclip_cli.curation.rules.script import ScriptRule
from dcclip_cli.curation.rules.wordless import WordlessRule

RuleUnion = Annotated[
    ImageRule
    | BlankRule
    | GarbledRule
    | MarkupRule
    | FilenameRule
    | WordlessRule
    | BoilerplateRule
    | RepetitionRule
    | LengthRule
    | LanguageRule
    | ScriptRule,
    Field(discriminator="kind"),
]

# In this order the first objection is the truest: a file name is no English, but that isn't what is wrong with it.
DEFAULT_RULES: tuple[RuleUnion, ...] = (
    ImageRule(),
    BlankRule(),
    GarbledRule(),
    MarkupRule(),
    FilenameRule(),
    WordlessRule(),
    BoilerplateRule(),
    RepetitionRule(),
    LengthRule(),
    LanguageRule(),
    ScriptRule(),
)

__all__ = ["DEFAULT_RULES", "Rule", "RuleUnion", "language_of"]
