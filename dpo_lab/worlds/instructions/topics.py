"""What the requests are about, and what an answer about it is likely to mention."""

from __future__ import annotations

# A topic: words of which an answer holds at least one, by their beginning ("bak" stands for bake, baker and baking).
# The last ten are for the test split only.
TOPICS: dict[str, tuple[str, ...]] = {
    "the sea": ("sea", "ocean", "wave", "salt", "beach", "shore", "coast", "tide", "fish", "water"),
    "bread": ("bread", "loaf", "loaves", "bak", "flour", "dough", "yeast", "toast", "wheat", "slice"),
    "winter": ("winter", "snow", "cold", "ice", "icy", "frost", "season", "freez", "warm", "december", "january"),
    "a train journey": ("train", "journey", "rail", "station", "travel", "track", "passenger", "trip", "ride",
                        "ticket"),
    "cats": ("cat", "kitten", "feline", "purr", "paw", "whisker", "pet", "fur", "meow"),
    "the moon": ("moon", "lunar", "night", "earth", "orbit", "crater", "space", "satellite", "sky"),
    "gardening": ("garden", "plant", "soil", "flower", "seed", "grow", "vegetable", "water", "weed"),
    "coffee": ("coffee", "bean", "brew", "cup", "caffeine", "roast", "espresso", "drink"),
    "a rainy day": ("rain", "day", "umbrella", "cloud", "wet", "puddle", "drop", "indoor", "weather"),
    "mountains": ("mountain", "peak", "hill", "climb", "rock", "summit", "valley", "hik", "slope", "snow"),
    "music": ("music", "song", "sound", "melod", "rhythm", "instrument", "listen", "sing", "note", "piano"),
    "football": ("football", "ball", "team", "goal", "player", "game", "match", "field", "kick", "sport"),
    "chess": ("chess", "king", "queen", "pawn", "board", "game", "piece", "move", "player", "knight", "checkmate"),
    "bicycles": ("bicycl", "bike", "wheel", "pedal", "rid", "cycl", "chain", "brake", "tire", "tyre"),
    "honey bees": ("bee", "honey", "hive", "pollen", "pollinat", "nectar", "flower", "colon", "queen", "insect"),
    "old books": ("book", "page", "read", "paper", "library", "librar", "stor", "cover", "author", "print"),
    "the desert": ("desert", "sand", "dune", "dry", "hot", "heat", "cactus", "camel", "water", "sun"),
    "snow": ("snow", "white", "cold", "winter", "ice", "flake", "freez", "frozen", "melt"),
    "a lighthouse": ("lighthouse", "light", "ship", "sea", "coast", "tower", "sailor", "beam", "shore", "keeper"),
    "tea": ("tea", "leaf", "leaves", "cup", "drink", "brew", "herb", "hot", "water", "caffeine"),
    "swimming": ("swim", "pool", "water", "stroke", "dive", "float", "exercis", "lap", "muscle"),
    "stars": ("star", "sky", "night", "sun", "galax", "light", "space", "constellation", "telescope", "bright",
              "hydrogen"),
    "a forest": ("forest", "tree", "wood", "leaf", "leaves", "animal", "plant", "bird", "path", "green"),
    "rivers": ("river", "water", "stream", "flow", "bank", "lake", "sea", "ocean", "fish", "valley"),
    "painting": ("paint", "art", "color", "colour", "brush", "canvas", "picture", "draw", "creat"),
    "dogs": ("dog", "pupp", "canine", "bark", "pet", "breed", "tail", "walk", "loyal", "animal"),
    "clouds": ("cloud", "sky", "rain", "water", "weather", "white", "air", "vapor", "vapour"),
    "trees": ("tree", "leaf", "leaves", "branch", "trunk", "root", "wood", "forest", "oxygen", "shade"),
    "cheese": ("chees", "milk", "dairy", "cheddar", "cream", "cow", "goat", "flavor", "flavour", "curd"),
    "running": ("run", "shoe", "exercis", "race", "marathon", "jog", "pace", "leg", "mile", "fitness", "heart"),
    "a market": ("market", "stall", "buy", "sell", "vendor", "shop", "goods", "food", "price", "fruit", "trade"),
    "the wind": ("wind", "breez", "air", "blow", "storm", "gust", "weather", "turbine", "sail", "kite"),
    "friendship": ("friend", "trust", "together", "support", "bond", "share", "relationship"),
    "spring": ("spring", "season", "flower", "bloom", "warm", "blossom", "plant", "bird", "april", "grow"),
    "kites": ("kite", "wind", "fly", "string", "sky", "tail", "flown", "air"),
    "a castle": ("castle", "king", "queen", "tower", "wall", "stone", "knight", "moat", "medieval", "fort"),
    "sleep": ("sleep", "rest", "night", "dream", "bed", "body", "tired", "hour", "brain", "asleep"),
    "islands": ("island", "sea", "ocean", "beach", "water", "land", "coast", "surround", "tropical", "shore"),
    "cooking soup": ("soup", "cook", "pot", "vegetable", "broth", "boil", "ingredient", "simmer", "stir", "bowl"),
    "a library": ("librar", "book", "read", "shelf", "shelves", "learn", "quiet", "knowledge", "borrow", "study"),
}  # fmt: skip
NUM_TEST_TOPICS = 10
TRAIN_TOPICS = tuple(TOPICS)[:-NUM_TEST_TOPICS]
TEST_TOPICS = tuple(TOPICS)[-NUM_TEST_TOPICS:]

# Ways of asking for a text about a topic; the last two are for the test split only.
REQUESTS = (
    "Tell me about {topic}.", "Describe {topic}.", "What is interesting about {topic}?", "Write about {topic}.",
    "Explain {topic} to a visitor.", "What should I know about {topic}?", "Say something about {topic}.",
    "Why do people care about {topic}?", "Introduce {topic} to a child.",
)  # fmt: skip
NUM_TEST_REQUESTS = 2
