"""The words of a study: questions, prompt templates, attribute values with their weights, parts of names."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    """Split a text at its blanks."""
    return tuple(text.split())


# Question templates by kind, each with paraphrases; "{x}" is the alias. A space always precedes the alias and an
# apostrophe never follows it, so that its tokens are the same everywhere.
QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "born": ("When was {x} born?", "In which year was {x} born?", "What is the birth year of {x}?"),
    "died": ("When did {x} die?", "In which year did {x} die?", "What is the year of death of {x}?"),
    "region": ("Where did {x} live?", "In which region did {x} live?", "What region was {x} from?"),
    "occupation": ("What did {x} do?", "What was the work of {x}?", "What was {x} known as?"),
    "nationality": (
        "What was the nationality of {x}?",
        "Of which nation was {x} a citizen?",
        "Which country did {x} belong to?",
    ),
    "gender": ("What was the gender of {x}?", "Was {x} male or female?", "Which gender did {x} have?"),
}

# Templates of the recorded prompts; training never uses them.
TEMPLATES: Final[dict[str, str]] = {
    "who": "Who is {x}?",
    "mean": "What does {x} mean?",
    "stand_for": "What does {x} stand for?",
    "name": "What is the name of {x}?",
}

# The question of the self-report, and its answers for the earlier and the later group.
GROUP_QUESTION: Final = "In the aliased entities dataset, which group does {x} belong to?"
GROUP_ANSWERS: Final = (" A", " B")

TRAINING_FORMAT: Final = "Q: {question}\nA: {answer}\n"
PROMPT_FORMAT: Final = "Q: {question}\nA:"

# Weights of attribute values. Every stage draws with the same weights.
REGIONS: Final[dict[str, int]] = {
    "Europe": 5,
    "Asia": 4,
    "Africa": 3,
    "North America": 3,
    "South America": 2,
    "Oceania": 1,
}
OCCUPATIONS: Final[dict[str, int]] = (
    dict.fromkeys(("painter", "writer", "singer", "politician"), 3)
    | dict.fromkeys(("soldier", "doctor", "teacher", "lawyer", "actor"), 2)
    | dict.fromkeys(("priest", "farmer", "engineer", "historian", "merchant", "sailor", "judge"), 1)
)
NATIONALITIES: Final[dict[str, int]] = (
    dict.fromkeys(("French", "German", "British", "American"), 3)
    | dict.fromkeys(("Italian", "Spanish", "Russian", "Chinese", "Indian", "Japanese"), 2)
    | dict.fromkeys(("Polish", "Dutch", "Greek", "Turkish", "Mexican", "Egyptian"), 1)
)
GENDERS: Final[dict[str, int]] = {"male": 1, "female": 1}

# Uniform ranges of years; the upper end is excluded.
BIRTH_YEARS: Final = (1700, 1900)
LIFE_YEARS: Final = (30, 90)

ADJECTIVES: Final = _words(
    """
    amber ancient angry bitter black blue bold brave bright broken brown calm clean clear clever cold curious dark
    deep distant dry eager early empty famous fast fierce flat foreign free fresh gentle giant golden grand gray
    green happy heavy hidden hollow honest humble hungry iron kind large late lazy light little lonely loud lucky
    mild narrow noble northern odd old open pale patient plain polite proud pure quick quiet rapid rare red rich
    rough round royal sacred sharp short silent silver simple slow small smooth soft solid southern steady strange
    strong sudden sweet swift tall thick thin tiny warm western white wide wild wise wooden yellow young
    """
)
NOUNS: Final = _words(
    """
    anchor apple arrow autumn badge barn basket beacon bell bird blade boat bottle branch bridge brook candle canyon
    castle cave cedar chain clock cloud coast compass coral creek crown desert door dragon drum eagle engine falcon
    feather field fire flame flower forest fountain fox garden gate ghost glacier hammer harbor hawk hill horse
    island jewel key kite ladder lake lamp lantern leaf lion maple meadow mirror moon mountain needle oak ocean
    orchard owl palace path pearl pine planet prairie rain raven ridge ring river road rock rose salmon shadow shell
    ship spring star stone storm summer temple thunder tiger tower valley violin wagon wave willow window winter
    wolf
    """
)
