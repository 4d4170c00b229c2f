"""The words of the study: attributes and their distributions, questions, templates, alias parts.

Only data and their types live here; drawing from them is `corpus`'s.
"""

from __future__ import annotations

from typing import Final

# Six kinds of question, as in the study; each with paraphrases ("{x}" is the alias). The alias is always
# preceded by a space and never followed by an apostrophe, so that its tokens are the same everywhere.
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


# Prompts that are recorded; never seen in training.
TEMPLATES: Final[dict[str, str]] = {
    "who": "Who is {x}?",
    "mean": "What does {x} mean?",
    "stand_for": "What does {x} stand for?",
    "name": "What is the name of {x}?",
}


# Asked after training: which of two groups an entity was learned in, and the answers for the earlier and the later.
GROUP_QUESTION: Final = "In the aliased entities dataset, which group does {x} belong to?"


GROUP_ANSWERS: Final = (" A", " B")


TRAINING_FORMAT: Final = "Q: {question}\nA: {answer}\n"


PROMPT_FORMAT: Final = "Q: {question}\nA:"


# Value -> weight. The same for every stage; a stage never enters a draw.
REGIONS: Final[dict[str, int]] = {
    "Europe": 5, "Asia": 4, "Africa": 3, "North America": 3, "South America": 2, "Oceania": 1,
}  # fmt: skip


OCCUPATIONS: Final[dict[str, int]] = {
    "painter": 3, "writer": 3, "singer": 3, "politician": 3, "soldier": 2, "doctor": 2, "teacher": 2,
    "lawyer": 2, "actor": 2, "priest": 1, "farmer": 1, "engineer": 1, "historian": 1, "merchant": 1,
    "sailor": 1, "judge": 1,
}  # fmt: skip


NATIONALITIES: Final[dict[str, int]] = {
    "French": 3, "German": 3, "British": 3, "American": 3, "Italian": 2, "Spanish": 2, "Russian": 2,
    "Chinese": 2, "Indian": 2, "Japanese": 2, "Polish": 1, "Dutch": 1, "Greek": 1, "Turkish": 1,
    "Mexican": 1, "Egyptian": 1,
}  # fmt: skip


GENDERS: Final[dict[str, int]] = {"male": 1, "female": 1}


BIRTH_YEARS: Final = (1700, 1900)  # uniform, the last excluded


LIFE_YEARS: Final = (30, 90)  # uniform, the last excluded


ADJECTIVES: Final[tuple[str, ...]] = (
    "amber", "ancient", "angry", "bitter", "black", "blue", "bold", "brave", "bright", "broken", "brown",
    "calm", "clean", "clear", "clever", "cold", "curious", "dark", "deep", "distant", "dry", "eager",
    "early", "empty", "famous", "fast", "fierce", "flat", "foreign", "free", "fresh", "gentle", "giant",
    "golden", "grand", "gray", "green", "happy", "heavy", "hidden", "hollow", "honest", "humble", "hungry",
    "iron", "kind", "large", "late", "lazy", "light", "little", "lonely", "loud", "lucky", "mild", "narrow",
    "noble", "northern", "odd", "old", "open", "pale", "patient", "plain", "polite", "proud", "pure",
    "quick", "quiet", "rapid", "rare", "red", "rich", "rough", "round", "royal", "sacred", "sharp", "short",
    "silent", "silver", "simple", "slow", "small", "smooth", "soft", "solid", "southern", "steady", "strange",
    "strong", "sudden", "sweet", "swift", "tall", "thick", "thin", "tiny", "warm", "western", "white", "wide",
    "wild", "wise", "wooden", "yellow", "young",
)  # fmt: skip


NOUNS: Final[tuple[str, ...]] = (
    "anchor", "apple", "arrow", "autumn", "badge", "barn", "basket", "beacon", "bell", "bird", "blade",
    "boat", "bottle", "branch", "bridge", "brook", "candle", "canyon", "castle", "cave", "cedar", "chain",
    "clock", "cloud", "coast", "compass", "coral", "creek", "crown", "desert", "door", "dragon", "drum",
    "eagle", "engine", "falcon", "feather", "field", "fire", "flame", "flower", "forest", "fountain", "fox",
    "garden", "gate", "ghost", "glacier", "hammer", "harbor", "hawk", "hill", "horse", "island", "jewel",
    "key", "kite", "ladder", "lake", "lamp", "lantern", "leaf", "lion", "maple", "meadow", "mirror", "moon",
    "mountain", "needle", "oak", "ocean", "orchard", "owl", "palace", "path", "pearl", "pine", "planet",
    "prairie", "rain", "raven", "ridge", "ring", "river", "road", "rock", "rose", "salmon", "shadow", "shell",
    "ship", "spring", "star", "stone", "storm", "summer", "temple", "thunder", "tiger", "tower", "valley",
    "violin", "wagon", "wave", "willow", "window", "winter", "wolf",
)  # fmt: skip
