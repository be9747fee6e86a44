"""Slips of the keyboard: which words one letter makes of another."""

SHORTEST_TYPO = 6
"""Letters that a word must have to be put right."""


def deletions(word: str) -> list[str]:
    """A word with each of its letters left out in turn."""
    return [word[:cut] + word[cut + 1 :] for cut in range(len(word))]


def is_slip(word: str, known: str) -> bool:
    """Whether one letter was lost, added, doubled or swapped with its neighbour, or replaced in a long word."""
    if len(word) != len(known):
        return abs(len(word) - len(known)) == 1 and len(known) >= SHORTEST_TYPO
    wrong = [place for place in range(len(word)) if word[place] != known[place]]
    if len(wrong) == 2:
        first, second = wrong
        return second == first + 1 and word[first] == known[second] and word[second] == known[first]
    return len(wrong) == 1 and len(word) > 8
