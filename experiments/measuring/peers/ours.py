"""tinygpt_jax itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.measuring.tables import timed
from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.config import Config
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.devices import peak_flops, resolve_dtype, use_device
from tinygpt_jax.generation import Sampling
from tinygpt_jax.generation.decoding import decode
from tinygpt_jax.model import GPT
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh, put_batch
from tinygpt_jax.training.step import initial_state, make_train_step


class Trainer:
    """The training step of `experiments.train`."""

    def __init__(self, config: Config) -> None:
        model, optimizer, self._mesh = _parts(config)
        self._state = initial_state(model, optimizer, config.training.seed, self._mesh)
        self._update = make_train_step(model, optimizer, config.training, self._mesh)
        self._step = 0
        self.n_parameters = sum(x.size for x in jax.tree.leaves(self._state.params))

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> jax.Array:
        self._state, metrics = self._update(self._state, self._put(inputs, targets), self._step)
        self._step += 1
        return metrics.loss

    def compile(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[jax.stages.Traced, jax.stages.Compiled]:
        """Such an update as JAX traced it, and the program of it, which later ones run."""
        traced = self._update.trace(self._state, self._put(inputs, targets), self._step)
        self._update = traced.lower().compile()
        return traced, self._update

    def peak_flops(self) -> float:
        """FLOP/s that a share of peak is of: the datasheet's, or those of a large matrix product, measured now."""
        return peak_flops() or matrix_product_flops()

    def _put(self, inputs: np.ndarray, targets: np.ndarray) -> Batch:
        return put_batch(Batch(inputs, targets, np.ones(targets.shape, bool)), self._mesh)


class Writer:
    """The decoding of `experiments.generate`."""

    def __init__(self, config: Config) -> None:
        use_device()
        self.model = GPT(config.model, resolve_dtype("auto"), arithmetic=resolve_arithmetic())
        self.params = jax.jit(self.model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    def write(self, prompts: np.ndarray, length: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(0), len(prompts))
        no_end = -1  # no token ends a text, so that every contestant writes the same number
        greedy = Sampling(temperature=0.0)
        pieces = decode(self.model, self.params, prompts.tolist(), keys, greedy, no_end, length, stride=length)
        return np.concatenate(list(pieces), axis=1)


def bytes_of_update(config: Config) -> tuple[int, int]:
    """Bytes that stay from update to update, and bytes that an update needs beside them; nothing is run."""
    model, optimizer, mesh = _parts(config)
    state = jax.eval_shape(lambda: initial_state(model, optimizer, config.training.seed, mesh))
    tokens = jax.ShapeDtypeStruct((config.training.batch_size, config.model.context_length), jnp.int32)
    batch = Batch(tokens, tokens, jax.ShapeDtypeStruct(tokens.shape, bool))
    return bytes_of(make_train_step(model, optimizer, config.training, mesh).lower(state, batch, 0).compile())


def bytes_of(update: jax.stages.Compiled) -> tuple[int, int]:
    """Of a compiled update its arguments, and its temporary memory with the results that reuse no argument's."""
    memory = update.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes + new


def _parts(config: Config) -> tuple[GPT, optax.GradientTransformation, Mesh]:
    use_device()
    model = GPT(config.model, resolve_dtype(config.training.compute_dtype), config.training.remat, resolve_arithmetic())
    return model, make_optimizer(config.optimizer, total_steps=1000), make_mesh()


def matrix_product_flops(size: int = 2048) -> float:
    """FLOP/s of the best of a few float32 products of two square matrices."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / min(timed(lambda: product(a, a).block_until_ready()) for _ in range(6))
