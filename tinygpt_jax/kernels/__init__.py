"""What `fused` is, with kernels written by hand for NVIDIA GPUs of the generation Ampere (2020) and later.

The names and signatures are those of `functional` here too, and the model takes this module in place of it.
"""

from tinygpt_jax.fused import attention as attention
from tinygpt_jax.fused import dropout as dropout
from tinygpt_jax.fused import embed as embed
from tinygpt_jax.fused import feed_forward as feed_forward
from tinygpt_jax.fused import linear as linear
from tinygpt_jax.fused import merge_heads as merge_heads
from tinygpt_jax.fused import orthogonal_direction as orthogonal_direction
from tinygpt_jax.fused import rotary as rotary
from tinygpt_jax.fused import sinusoidal_encoding as sinusoidal_encoding
from tinygpt_jax.fused import split_heads as split_heads
from tinygpt_jax.fused import token_logits as token_logits
from tinygpt_jax.kernels.causal_attention import self_attention as self_attention
from tinygpt_jax.kernels.loss import head_cross_entropy as head_cross_entropy
from tinygpt_jax.kernels.normalisation import layer_norm as layer_norm
