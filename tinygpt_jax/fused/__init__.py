"""What `functional` defines, arranged for a machine: the same names and signatures, often with gradients by hand.

Each function gives the value and the gradients of its plain counterpart, and a test holds it to that; what is not
arranged is the plain function. The model takes this module or `functional`. Gradients by hand serve `jax.grad` alone:
`jax.jvp`, and with it `jax.hessian`, need the plain functions.
"""

from tinygpt_jax.functional import dropout as dropout
from tinygpt_jax.functional import layer_norm as layer_norm
from tinygpt_jax.functional import merge_heads as merge_heads
from tinygpt_jax.functional import rotary as rotary
from tinygpt_jax.functional import sinusoidal_encoding as sinusoidal_encoding
from tinygpt_jax.functional import split_heads as split_heads
from tinygpt_jax.functional import token_logits as token_logits
from tinygpt_jax.fused.blockwise import attention as attention
from tinygpt_jax.fused.blockwise import self_attention as self_attention
from tinygpt_jax.fused.embedding import embed as embed
from tinygpt_jax.fused.loss import head_cross_entropy as head_cross_entropy
from tinygpt_jax.fused.orthogonal import orthogonal_direction as orthogonal_direction
from tinygpt_jax.fused.products import feed_forward as feed_forward
from tinygpt_jax.fused.products import linear as linear
