"""The words of the pocket world, and which of them only the test split may use.

People and places are mostly put together from syllables, many things and foods from two words (`beachbag`, `plum jam`):
there are thousands, so a model must learn to copy them, since it cannot learn them all. A checksum of its letters says
to which split a name or a word that was put together belongs.
"""

# ruff: noqa: SIM905  lists of words read better as one string
from __future__ import annotations

from collections.abc import Sequence
from random import Random
from zlib import crc32

from dpo_lab.worlds.pocket.english import ENGLISH
from dpo_lab.worlds.pocket.schema import Split

SYLLABLES = (
    "ba be bo da de do fa fi ga go ha jo ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe po ra re ri "
    "ro sa se so ta te ti to va ve vi wa wi ya yo za zo"
).split()
CODAS = ("", "", "", "l", "n", "r", "s", "m")
PLACE_ENDINGS = "ton ville berg field port ham stad wick".split()

FIRST_NAMES = (
    "Ada Alma Amir Anna Anton Asha Ben Bianca Boris Carla Carlos Clara Daniel Dara David Diana Elena Elias "
    "Emil Emma Erik Eva Felix Fiona Frida Gina Greta Hana Hugo Ida Igor Ines Iris Ivan Jana Jonas Julia Kai "
    "Karim Karla Kofi Lara Laura Lena Leo Lila Linus Lisa Luca Lucy Malik Mara Marco Maria Marta Max Mia Mila "
    "Mira Nadia Nick Nina Noah Nora Olga Oscar Otto Pablo Paul Paula Petra Rahul Rita Rosa Ruben Ruth Sam "
    "Sara Selma Simon Sofia Sven Tara Theo Tina Tom Uma Vera Victor Wanda Yara Yusuf Zoe"
).split()
TEST_FIRST_NAMES = (
    "Halina Lukas Milan Moris Nikita Pelin Rami Roman Salim Tamara Tamina Teresa Tomas Vanesa Yoko"
).split()
THINGS = (
    "ball basket bell bike blanket boat book bottle box brush bucket candle chair clock coat cup doll drum "
    "flute guitar hammer hat jar kettle kite ladder lamp mirror mug net pan pencil pillow plate puzzle racket "
    "ring rope rug scarf scooter shovel sled spoon stool sweater tent torch towel toy vase violin wagon watch "
    "whistle armchair backpack bookshelf doghouse flowerpot football keyring lunchbox notebook raincoat "
    "snowball sunhat teapot toolbox toothbrush"
).split()
THING_STEMS = (
    "bath beach bed bird boat book cake car coat cook desk dog door doll egg flower foot garden glass hair hand "
    "key kitchen lamp milk paint paper pet rain ring sand school shell snow sports sun tea tool travel window"
).split()
THING_ENDINGS = "bag basket bell board box brush case cover hook lamp mat pot rack sack shelf stand stick tray".split()

FOODS = (
    "apples beans bread butter carrots cheese cherries cocoa corn eggs fish flour garlic grapes honey jam "
    "lemons melons milk mushrooms noodles nuts oats olives onions pasta pears peas peppers plums potatoes "
    "rice salt soup spinach sugar tea tomatoes peanuts"
).split()
FOOD_STEMS = (
    "almond apple banana bean berry cheese cherry cocoa corn egg fish fruit ginger herb honey lemon melon milk "
    "nut oat onion pea peach pepper plum potato rice spice sugar tomato"
).split()
FOOD_ENDINGS = "bread buns cakes cream jam juice mash pies rolls salad sauce soup stew sweets tarts tea".split()

PLAIN: dict[Split, float] = {"train": 0.5, "test": 0.7}
"""Share of plain things. In training many are rare, so that copying pays."""
PLAIN_FOODS = 0.6

COLOURS = "red blue green yellow white black brown purple orange pink".split()
PETS = "cat dog rabbit horse parrot hamster goat turtle duck pony mouse goldfish".split()
TRADES = "baker teacher farmer nurse painter singer driver gardener cook pilot tailor writer".split()
SUBJECTS = "maths history music spelling drawing reading".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# Question, the answer in a sentence, the word that must be in it.
FACTS = (
    ("What colour is grass?", "Grass is green", "green"),
    ("What colour is the sky?", "The sky is blue", "blue"),
    ("What colour is snow?", "Snow is white", "white"),
    ("What colour is a lemon?", "A lemon is yellow", "yellow"),
    ("What colour is coal?", "Coal is black", "black"),
    ("What colour is a carrot?", "A carrot is orange", "orange"),
    ("What colour is chocolate?", "Chocolate is brown", "brown"),
    ("What does a cow say?", "A cow says moo", "moo"),
    ("What does a dog say?", "A dog says woof", "woof"),
    ("What does a cat say?", "A cat says meow", "meow"),
    ("What does a duck say?", "A duck says quack", "quack"),
    ("What does a sheep say?", "A sheep says baa", "baa"),
    ("How many legs has a spider?", "A spider has eight legs", "eight"),
    ("How many legs has a dog?", "A dog has four legs", "four"),
    ("How many legs has a bird?", "A bird has two legs", "two"),
    ("How many legs has a fly?", "A fly has six legs", "six"),
    ("How many days has a week?", "A week has seven days", "seven"),
    ("How many months has a year?", "A year has twelve months", "twelve"),
    ("What do bees make?", "Bees make honey", "honey"),
    ("What do cows give us?", "Cows give us milk", "milk"),
    ("What do hens lay?", "Hens lay eggs", "eggs"),
    ("What do rabbits eat?", "Rabbits eat carrots", "carrots"),
    ("What is the opposite of hot?", "The opposite of hot is cold", "cold"),
    ("What is the opposite of big?", "The opposite of big is small", "small"),
    ("What is the opposite of fast?", "The opposite of fast is slow", "slow"),
    ("What is the opposite of up?", "The opposite of up is down", "down"),
    ("Which season is the coldest?", "Winter is the coldest season", "winter"),
    ("Which season is the warmest?", "Summer is the warmest season", "summer"),
)

# Needless sentences: true and friendly, and they cost a little.
FILLERS = (
    "I hope this helps.",
    "Let me know if you need more.",
    "That is a good question.",
    "I am always happy to help you.",
    "Thank you for asking me.",
    "Have fun with it.",
)


def person(rng: Random, split: Split) -> str:
    """A first name; two thirds are made of syllables."""
    if rng.random() < 1 / 3:
        return rng.choice(FIRST_NAMES if split == "train" else TEST_FIRST_NAMES)
    while True:
        count = 2 if rng.random() < 0.7 else 3
        name = "".join(rng.choice(SYLLABLES) for _ in range(count)) + rng.choice(CODAS)
        if split_of(name.capitalize()) == split and name not in ENGLISH:
            return name.capitalize()


def place(rng: Random, split: Split) -> str:
    """A town: one or two syllables and an ending."""
    while True:
        count = 1 if rng.random() < 0.5 else 2
        name = "".join(rng.choice(SYLLABLES) for _ in range(count)) + rng.choice(PLACE_ENDINGS)
        if split_of(name.capitalize()) == split:
            return name.capitalize()


def split_of(name: str) -> Split:
    """Which split a word that was put together belongs to: the lists first, else a fifth of all letter sequences."""
    if name in FIRST_NAMES:
        return "train"
    if name in TEST_FIRST_NAMES:
        return "test"
    return "test" if crc32(name.encode()) % 5 == 0 else "train"


def thing(rng: Random, split: Split) -> str:
    """A thing one can own; many are put together from two words, like `beachbag`, and in the test split never seen."""
    return _compound(rng, split, THING_STEMS, THING_ENDINGS) if rng.random() >= PLAIN[split] else rng.choice(THINGS)


def foods(rng: Random, split: Split, count: int) -> list[str]:
    """Different foods; many are two words, like `plum jam`, and in the test split never seen together."""
    chosen: list[str] = []
    while len(chosen) < count:
        is_plain = rng.random() < PLAIN_FOODS
        food = rng.choice(FOODS) if is_plain else _compound(rng, split, FOOD_STEMS, FOOD_ENDINGS, between=" ")
        if food not in chosen:
            chosen.append(food)
    return chosen


def _compound(rng: Random, split: Split, stems: Sequence[str], endings: Sequence[str], between: str = "") -> str:
    while True:
        stem, ending = rng.choice(stems), rng.choice(endings)
        word = stem + between + ending
        if stem != ending and split_of(word) == split:
            return word


def article(noun: str) -> str:
    """The noun with a or an before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def join(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
