"""The words of a corpus."""

import re
from collections import Counter, defaultdict

import numpy as np

from tinygpt_jax.data.corpus import Corpus

_STORIES = 20_000  # of more, so many that are evenly spaced tell as much
_WORDS = 300
_LONGEST = 50  # letters: what is longer is no word, and no picture could show it


def frequent_words(corpus: Corpus) -> dict[str, int]:
    """The most frequent words of the training stories and how often they occur, the most frequent first.

    A word counts in upper and lower case together, and is spelled in its commonest way. Letters make a word, with
    apostrophes between them: stories of digits or emoji alone have none.
    """
    offsets, count = corpus.train.offsets, corpus.train.n_stories
    spellings: Counter[str] = Counter()
    for index in np.arange(0, count, max(1, count // _STORIES)):
        story = corpus.tokenizer.decode(corpus.train.tokens[offsets[index] : offsets[index + 1]])
        found = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", story)
        spellings.update(word for word in found if len(word) <= _LONGEST)
    occurrences: defaultdict[str, int] = defaultdict(int)
    commonest: dict[str, str] = {}
    for spelling, times in spellings.most_common():
        occurrences[spelling.lower()] += times
        commonest.setdefault(spelling.lower(), spelling)
    return {commonest[word]: times for word, times in Counter(occurrences).most_common(_WORDS)}
