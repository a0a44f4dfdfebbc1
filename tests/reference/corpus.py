"""Writes tests/fixtures/corpus.txt: small documents of our own making, one a line, for the tiny models."""

import random
from pathlib import Path

random.seed(7)
people = ["Anna", "Boris", "Chloé", "Dmitri", "Eve", "Faruk", "Grace", "Hiro"]
things = ["a red kite", "the old map", "three letters", "a box of 12 eggs", "the café's keys", "a broken radio"]
places = ["the harbour", "the station", "a small shop", "the library", "the river"]
verbs = ["gave", "sold", "showed", "sent", "lent"]
endings = ["and went home.", "before the rain began.", "because nobody else wanted it.", "at 7:45 in the morning."]


def sentence():
    a, b = random.sample(people, 2)
    return (f"When {a} and {b} met at {random.choice(places)}, {a} {random.choice(verbs)} {random.choice(things)} "
            f"to {b} {random.choice(endings)}")


documents = [" ".join(sentence() for _ in range(random.randint(2, 5))) for _ in range(40)]
(Path(__file__).parent.parent / "fixtures" / "corpus.txt").write_text("\n".join(documents) + "\n")
