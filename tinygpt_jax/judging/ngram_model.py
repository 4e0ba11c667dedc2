"""What counting could say of a text: the unigram and the 5-gram model that neural ones are compared with.

    p_1(t)     = (c(t) + 1) / (N + V)
    p_n(t | h) = (c(h t) + b p_(n-1)(t | h')) / (c(h) + b)

c counts in the training stories, h are the n - 1 tokens before t, h' is h without its first, N is the number of tokens
and V of different ones: Dirichlet smoothing, each order's prior the order below (MacKay & Peto 1995). What was not
seen costs little where its context is rare, and the probabilities of all tokens sum to 1.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from tinygpt_jax.judging.ngrams import counts, hashes

ORDER = 5
MOST_TOKENS = 50_000_000  # counted; of longer corpora the first so many
_PRIOR = 64.0  # b: of the powers of two to 256 the best on held-out TinyStories, with 1.2 million tokens to count in


def token_log_probabilities(
    corpus: Integer[np.ndarray, " t"], vocab_size: int, texts: Sequence[Sequence[int]], end_of_text: int, order: int
) -> list[Float[np.ndarray, " length"]]:
    """ln p of each token of some texts, from counts in a corpus of stories, each with an end-of-text behind it.

    Args:
        corpus: token ids.
        vocab_size: how many different tokens there are.
        texts: token ids; each is read behind an end-of-text, as a story in the corpus is.
        end_of_text: that token.
        order: how many tokens p looks at, its own among them: 1 or more.
    """
    corpus = corpus[:MOST_TOKENS]
    read = [np.array([end_of_text, *text]) for text in texts]
    offsets = np.cumsum([0, *map(len, read)])
    tokens = np.concatenate(read)
    before = np.arange(len(tokens)) - np.repeat(offsets[:-1], np.diff(offsets))  # tokens of its own text before each
    seen = counts(corpus, hashes(tokens, 1), 1)  # of the n-gram that ends at each place
    p = (seen + 1.0) / (len(corpus) + vocab_size)
    for n in range(2, order + 1):
        places = np.flatnonzero(before >= n - 1)
        context = seen[places - 1]
        seen = np.zeros_like(seen)
        seen[places] = counts(corpus, hashes(tokens, n)[places - (n - 1)], n)
        p[places] = (seen[places] + _PRIOR * p[places]) / (context + _PRIOR)
    return [np.log(row[1:]) for row in np.split(p, offsets[1:-1])]


def text_log_probabilities(
    corpus: Integer[np.ndarray, " t"], vocab_size: int, texts: Sequence[Sequence[int]], end_of_text: int, order: int
) -> Float[np.ndarray, " n"]:
    """ln p of n whole texts, without their end. Sums are exact: texts of the same factors are equally likely."""
    each = token_log_probabilities(corpus, vocab_size, texts, end_of_text, order)
    return np.array([math.fsum(row) for row in each])
