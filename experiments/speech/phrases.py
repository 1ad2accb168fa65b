"""Sentences to be spoken: words put into templates at random, other ones for each set.

Sets share only the templates' function words, so that neither phrases nor vocabulary can be learnt
by heart.
"""

import string
from typing import NamedTuple

import numpy as np


class Phrases(NamedTuple):
    """What the sentences of one set are made of."""

    templates: tuple[str, ...]
    """Sentences with places for words: {noun}, {nouns}, {adjective}, ..."""
    words: dict[str, tuple[str, ...]]
    """Words by the name of their place; those for "nouns" are the nouns with an s."""


def compose(phrases: Phrases, count: int, random: np.random.Generator) -> tuple[str, ...]:
    """`count` different sentences, drawn at random.

    Raises `ValueError` if the words hardly give as many.
    """
    found: dict[str, None] = {}
    for _ in range(10 * count):
        found.setdefault(_sentence(phrases, random))
        if len(found) == count:
            return tuple(found)
    raise ValueError(
        f"{count} different sentences were asked for, but the words gave only {len(found)}: "
        f"ask for fewer, or add words"
    )


def _sentence(phrases: Phrases, random: np.random.Generator) -> str:
    template = phrases.templates[random.integers(len(phrases.templates))]
    parts = []
    for text, place, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if place is not None:
            words = phrases.words["noun" if place == "nouns" else place]
            parts.append(words[random.integers(len(words))] + "s" * (place == "nouns"))
    sentence = "".join(parts)
    return sentence[0].upper() + sentence[1:]


def _phrases(templates: str, **words: str) -> Phrases:
    lines = tuple(line.strip() for line in templates.strip().splitlines())
    return Phrases(lines, {place: tuple(of.split()) for place, of in words.items()})


TRAIN = _phrases(
    """
    the {adjective} {noun} {verb} my {noun}.
    {name} and {name} {verb} the {noun} {adverb}.
    {adverb}, the {noun} {verb} {number} {nouns}.
    why did you say that the {noun} was {adjective}?
    if you see the {noun}, tell {name} about my {adjective} {noun}.
    our {nouns} were {adjective} and {adjective}, but not the {noun}.
    {name} {verb} the {noun} with {number} {adjective} {nouns}.
    can you give {name} the {noun} and this {noun}?
    there is no {noun} in the {adjective} {noun}.
    she {verb} her {noun}, and he {verb} his {adjective} {noun} {adverb}.
    """,
    noun="""
    garden river window teacher mountain dog pocket engine letter bottle farmer button
    camel kitchen doctor shadow island blanket wheel feather hammer mirror castle journey kettle
    ladder monkey needle ocean pencil rabbit saddle table uncle valley wagon zebra apple basket
    candle dolphin elbow forest guitar helmet insect jacket key lemon market nurse onion painter
    queen road sailor tailor vase whistle yard zipper boat chair door eagle flower ghost hotel idea
    jewel king lamp measure mouth neighbour orange parrot question robot song tooth view
    tower potato village bird cow shop toy coin voice moon spoon cook book shirt jar wing spring
    decision collision garage ring wool beer pier
    """,
    adjective="""
    happy quiet yellow broken golden heavy narrow clever hungry gentle frozen purple wooden modern
    careful noisy shiny tiny ugly warm young zealous brave cheap dark early fresh green hollow
    icy jolly kind loose muddy nervous open poor quick round soft thick usual various wild royal
    thirsty smooth other shy wet odd rude third casual weird long
    """,
    verb="""
    carried watched followed painted measured borrowed visited chased lifted pushed pulled
    remembered answered opened covered dropped enjoyed fetched gathered hated invited joined kicked
    loved moved noticed ordered planted raised saved touched used washed wanted cooked burned sold
    threw took heard found caught bought brought
    """,
    adverb="""
    slowly quickly often yesterday outside together suddenly always quietly again sadly early
    boldly somewhere later nearby
    """,
    name="""
    Robert Susan Peter Laura Michael Judy Thomas Vera George Ruth Oscar Emma Hugo Zoe Charlie
    Theo Yvonne Shirley Ian Walter
    """,
    number="two three four seven nine eleven thirteen forty thousand",
)

DEVELOPMENT = _phrases(
    """
    my {adjective} {noun} {verb} almost {number} {nouns}.
    did {name} say where the {noun} and the {noun} are?
    this {noun} is as {adjective} as that {noun}, {name}.
    they {verb} {adverb} because of the {adjective} {nouns}.
    who {verb} your {noun} before we saw {name}?
    """,
    noun="""
    pillow turtle harbour cushion donkey pigeon lantern judge thunder fire oyster wolf carpet
    puzzle shovel meadow goose curtain statue leather earth noise beard chain vision yacht
    """,
    adjective="""
    silver angry pleasant rural bitter humble awkward lazy white junior smart good weary crowded
    foolish choosy northern sure
    """,
    verb="""
    cleaned pleased ruined destroyed welcomed gave shared hurried offered judged looked thanked
    trusted counted
    """,
    adverb="twice anywhere gladly below upstairs loudly",
    name="Arthur Fiona Joyce Ben Sheila Harvey Daisy Ethel",
    number="five ten twelve thirty",
)

TEST = _phrases(
    """
    {name} has never {verb} such a {adjective} {noun}.
    how many {nouns} were {verb} by the {noun} {adverb}?
    these {number} {nouns} look {adjective}, said {name}.
    we {verb} both the {noun} and your {adjective} {noun}.
    when the {noun} fell, {name} {adverb} {verb} our {nouns}.
    it was {adverb} the {adjective} {noun} that {verb} them.
    please bring me some {nouns} from the {noun}.
    """,
    noun="""
    pepper soldier barrel television tunnel cottage thief youth zoo giraffe shoulder butcher finger
    chimney brother jungle mushroom lawyer tiger waiter wood goat cloud boy fur heart ear square
    rope machine weather poison treasure yoghurt pear cup nest ship tomb desk rug ham
    """,
    adjective="""
    funny simple hidden cold dusty famous bright pure lovely sharp juicy empty thin massive huge
    blue worthy annoyed jealous full sour deep rare
    """,
    verb="""
    kissed cherished chewed doubted admired tasted scrubbed shaped ignored bathed avoided
    treasured mended stirred wrapped wished employed viewed
    """,
    adverb="seldom nowhere cheerfully perhaps rarely softly truly today thankfully",
    name="Edward Sophie Jonathan Martha Louise Gareth Chloe Vincent Yasmin",
    number="six eight fourteen twenty hundred",
)
