"""The words of the sample stories: who can be in them, what they are called, where they live.

It knows no plots and chooses nothing: the plots stand in `sample_tiny.py`, `sample_children.py` and
`sample_simple.py`, and `sample_stories.py` puts a story together.

Template language, used in every string of the plots:
    [a|b|c]    one of these, chosen again each time; may be nested, and an option may be empty
    {thing}    the slot `thing`: chosen at its first use in a story, the same in the rest of it
    {a thing}  the slot with "a" or "an" before it;  {Thing} the slot with a capital letter
    {he} {him} {his} {himself}    pronouns of the hero;  {friend.he} ... those of the friend
Slots that every story has: hero, kind, home, hands, friend, friend_name, friend.kind (what the friend is). {friend}
becomes "a kind goat named Pip" where it stands first, and "Pip" from there on: a plot need not know who comes when.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Case = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One trouble with all that fits it: who may be in it, what is chosen together, and the wordings of each beat."""

    name: str
    heroes: tuple[str, ...] = ("child", "animal")  # groups of HEROES
    without: tuple[str, ...] = ()  # kinds of hero that would never have this trouble; helpers are left out anyway
    words: Case = field(default_factory=dict)  # slots of this plot
    cases: tuple[Case, ...] = ({},)  # slots that are chosen together, such as a helper and what that helper can do
    trouble: tuple[str, ...]
    attempt: tuple[str, ...]
    turn: tuple[str, ...]
    ending: tuple[str, ...]
    lesson: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Register:
    """A way of telling: the order of the beats, how stories start, the words that plots need not give, the plots."""

    names: int  # how many names of each table are in use; fewer are easier to learn
    shapes: tuple[str, ...]
    starts: tuple[Case, ...]
    words: Case
    plots: tuple[Plot, ...]


PRONOUNS: Mapping[str, Case] = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

# A girl and her brother the fox would confuse a model of a million weights, and some readers: hero and friend
# always have different pronouns, so that every "he" and "she" has exactly one meaning.
OTHER_PRONOUN: Case = {"she": "he", "he": "she"}

HEROES: Mapping[str, tuple[str, ...]] = {
    "child": ("girl", "boy"),
    "animal": (
        "rabbit", "fox", "bear", "mouse", "hedgehog", "kitten", "puppy", "badger", "squirrel", "raccoon",
        "lamb", "otter", "panda", "beaver", "mole", "pony", "elephant", "tiger",
    ),
    "bird": ("robin", "owl", "sparrow", "duckling", "wren", "crow"),
    "machine": ("robot",),
    "sea": ("fish", "turtle", "crab", "seal", "dolphin", "octopus", "seahorse"),
}  # fmt: skip

HANDS: Case = {"child": "hands", "animal": "paws", "bird": "wings", "sea": "fins", "machine": "hands"}

HOMES: Case = {
    "girl": "in [a small house|a little red house|a yellow house near the park|a house on a hill]",
    "boy": "in [a small house|a little blue house|a white house near the river|a house on a hill]",
    "rabbit": "in a warm burrow under [a hill|an oak tree]",
    "fox": "in a snug den [under a hill|in the woods]",
    "bear": "in a cozy cave [in the woods|near a waterfall]",
    "mouse": "in a tiny hole [behind the kitchen wall|under the stairs]",
    "hedgehog": "in a nest of dry leaves",
    "kitten": "in a basket [by the fire|near the kitchen door]",
    "puppy": "[in a little dog house|on a farm with a red barn]",
    "badger": "in a deep den under the roots",
    "squirrel": "in a hollow oak tree",
    "raccoon": "in a hollow log",
    "lamb": "on a green farm",
    "otter": "on the bank of a quick river",
    "panda": "in a green bamboo forest",
    "beaver": "in a house of sticks on the pond",
    "mole": "in a long, dark tunnel",
    "pony": "in a barn on a farm",
    "elephant": "by a wide, brown river",
    "tiger": "in a warm, green jungle",
    "robin": "in a nest in the apple tree",
    "owl": "in a hole in the old oak tree",
    "sparrow": "in a nest under the roof",
    "duckling": "by a quiet pond",
    "wren": "in a nest in the garden wall",
    "crow": "in a nest at the top of the tallest tree",
    "fish": "in the blue sea",
    "turtle": "near a sandy beach",
    "crab": "under a flat rock by the sea",
    "seal": "by the cold, gray sea",
    "dolphin": "in a wide, blue bay",
    "octopus": "in a cave under the sea",
    "seahorse": "in a forest of green sea grass",
    "robot": "in a small repair shop",
}

# Helpers that go by what they are to the hero; the one of the right pronoun is taken.
FAMILY: Mapping[str, Case] = {
    "parent": {"she": "Mom", "he": "Dad"},
    "grandparent": {"she": "Grandma", "he": "Grandpa"},
    "relative": {"she": "Aunt {friend_name}", "he": "Uncle {friend_name}"},
}

# Helpers that go by their work and have no name; every other helper is an animal or a creature and may have one.
PEOPLE: frozenset[str] = frozenset(
    {
        "bell ringer", "bus driver", "carpenter", "clockmaker", "farmer", "gardener", "giant", "librarian",
        "lighthouse keeper", "mail carrier", "music teacher", "neighbor", "painter", "sailor", "shepherd", "teacher",
        "toymaker",
    }
)  # fmt: skip

# The first names of each table are single GPT-2 tokens, or nearly; a register uses the first `names` of them.
GIRL_NAMES: tuple[str, ...] = (
    "Lily", "Mia", "Anna", "Sara", "Maya", "Zoe", "Lucy", "Amy", "Ella", "Rosa", "Ruby", "Nina", "Emma", "Eva", "Ada",
    "Iris", "Hana", "Mei", "Aisha", "Sofia", "Kate", "Grace", "Lena", "Leila", "Mina", "Yuki", "Priya", "Nora", "Ivy",
    "Clara", "Amina", "Tara", "Jade", "Alice", "Maria", "Elena", "Fatima", "Luna", "Daisy", "Hazel", "Olivia", "Noor",
    "Kaya", "Asha", "Ines", "Suki", "Freya", "Greta", "Mona", "Dora", "Carmen", "Esme", "Heidi", "Jasmine", "Layla",
    "Naomi", "Paloma", "Sana", "Thea", "Willa",
)  # fmt: skip
BOY_NAMES: tuple[str, ...] = (
    "Tom", "Ben", "Max", "Sam", "Leo", "Tim", "Jack", "Omar", "Ali", "Luis", "Noah", "Finn", "Hugo", "Ravi", "Kai",
    "Ken", "Adam", "Oscar", "Ivan", "Theo", "Jin", "Diego", "Amir", "Milo", "Felix", "Kofi", "Arjun", "Paul", "Eli",
    "Dan", "Pablo", "Hassan", "Marco", "Owen", "Henry", "Yusuf", "Ian", "Luca", "Mateo", "Otto", "Jamal", "Nico",
    "Tariq", "Emil", "Kwame", "Bruno", "Dev", "Erik", "Idris", "Jonas", "Karim", "Lars", "Malik", "Nils", "Rafael",
    "Samir", "Tomas", "Viktor", "Wei", "Zane",
)  # fmt: skip
ANIMAL_NAMES: tuple[str, ...] = (
    "Pip", "Coco", "Dot", "Toto", "Momo", "Fern", "Sunny", "Biscuit", "Teddy", "Nutmeg", "Rusty", "Honey",
    "Pepper", "Bean", "Moss", "Clover", "Lulu", "Ziggy", "Button", "Snow", "Berry", "Cookie", "Pebble", "Maple", "Tiny",
    "Ginger", "Olive", "Mango", "Jojo", "Willow", "Bramble", "Poppy", "Tumble", "Sage", "Cocoa", "Misty", "Fig",
    "Juniper", "Acorn", "Barley", "Tansy", "Kiki", "Bobo", "Nana", "Waffle", "Pickle", "Sesame", "Bumble", "Thistle",
    "Peanut",
)  # fmt: skip
