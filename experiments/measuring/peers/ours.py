"""tinygpt_jax itself."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tinygpt_jax import fused
from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.devices import describe_devices, peak_flops, resolve_dtype, use_device
from tinygpt_jax.generation import Sampling
from tinygpt_jax.generation.decoding import decode
from tinygpt_jax.model import GPT
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.step import data_mesh, initial_state, make_train_step, put_batch


class Trainer:
    """The training step of `experiments.train`."""

    def __init__(self, config: Config) -> None:
        use_device()
        self.mesh = data_mesh()
        model = GPT(config.model, resolve_dtype(config.training.compute_dtype), config.training.remat, fused)
        optimizer = make_optimizer(config.optimizer, total_steps=1000)
        self.state = initial_state(model, optimizer, config.training.seed, self.mesh)
        self._update = make_train_step(model, optimizer, config.training, self.mesh)
        self._step = 0

    def train(self, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """See the package."""
        loss = jnp.nan
        for inputs, targets in batches:
            batch = put_batch(Batch(inputs, targets, np.ones(targets.shape, bool)), self.mesh)
            self.state, metrics = self._update(self.state, batch, self._step)
            self._step += 1
            loss = metrics.loss
        return float(loss)

    def n_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(x.size for x in jax.tree.leaves(self.state.params))

    def device(self) -> str:
        """What JAX runs on."""
        return describe_devices()

    def peak_flops(self) -> float:
        """FLOP/s that a share of peak is of: the datasheet's, or those of a large matrix product, measured now."""
        return peak_flops() or matrix_product_flops()


class Writer:
    """The decoding of `experiments.generate`."""

    def __init__(self, model: ModelConfig) -> None:
        use_device()
        self.model = GPT(model, resolve_dtype("auto"), arithmetic=fused)
        self.params = jax.jit(self.model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    def write(self, prompts: np.ndarray, length: int) -> np.ndarray:
        """See the package."""
        keys = jax.random.split(jax.random.key(0), len(prompts))
        no_end = -1  # no token ends a text, so that every contestant writes the same number
        greedy = Sampling(temperature=0.0)
        pieces = decode(self.model, self.params, prompts.tolist(), keys, greedy, no_end, length, stride=length)
        return np.concatenate(list(pieces), axis=1)


def bytes_of_update(config: Config) -> tuple[int, int]:
    """See `MemoryTurns`: the compiled update's arguments, and its temporary memory with what it does not reuse."""
    use_device()
    mesh = data_mesh()
    model = GPT(config.model, resolve_dtype(config.training.compute_dtype), config.training.remat, fused)
    optimizer = make_optimizer(config.optimizer, total_steps=1000)
    state = jax.eval_shape(lambda: initial_state(model, optimizer, config.training.seed, mesh))
    tokens = jax.ShapeDtypeStruct((config.training.batch_size, config.model.context_length), jnp.int32)
    batch = Batch(tokens, tokens, jax.ShapeDtypeStruct(tokens.shape, bool))
    compiled = make_train_step(model, optimizer, config.training, mesh).lower(state, batch, 0).compile()
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes + new


def matrix_product_flops(size: int = 2048) -> float:
    """FLOP/s of the best of a few float32 products of two square matrices."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
