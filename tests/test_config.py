import dataclasses
import json

import numpy as np
import pytest

from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UsageError


def test_the_default_is_the_reference_system():
    """Guards the mission's numbers against drift."""
    c = Config()
    assert (c.model.n_layers, c.model.d_model, c.model.d_ff, c.model.n_heads, c.model.head_dim) == (
        12,
        768,
        3072,
        12,
        64,
    )
    assert (c.model.activation, c.model.norm, c.model.positions, c.model.dropout) == ("relu", "post", "sinusoidal", 0.1)
    assert (c.model.vocab_size, c.model.context_length, c.data.layout) == (50_257, 128, "padded")
    assert (c.optimizer.learning_rate, c.optimizer.beta1, c.optimizer.beta2, c.optimizer.clip_norm) == (
        1e-4,
        0.9,
        0.999,
        1.0,
    )
    assert (c.training.batch_size, c.training.epochs, c.data.validation_fraction) == (32, 5, 0.1)


def test_json_round_trip():
    config = Config(
        ModelConfig(n_layers=3), DataConfig(vocabulary="compact", max_vocab=7), training=TrainingConfig(steps=9)
    )
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json("{}") == Config()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("not json", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"modle": {}}', "modle"),
        ('{"model": 3}', "must be a JSON object"),
        ('{"model": {"d_modle": 3}}', "d_modle"),
        ('{"model": {"d_model": "3"}}', "d_model '3': must be int"),
        ('{"model": {"d_model": true}}', "d_model True"),
        ('{"model": {"dropout": NaN}}', "dropout nan"),
        ('{"data": {"max_vocab": 1.5}}', "max_vocab 1.5"),
        ("[" * 100_000, "not JSON"),
        ('{"training": {"steps": ' + "9" * 5000 + "}}", "not JSON"),
        (
            '{"training": {"steps": 10000000000000000000}}',
            "steps of 20 digits: must be at least 1 and at most 99999999",
        ),
        ('{"training": {"batch_size": 10000000000000000000}}', "batch_size of 20 digits: must be below 2.53"),
    ],
)
def test_a_wrong_document_is_refused_by_name(text, names):
    with pytest.raises(UsageError, match=names) as failure:
        Config.from_json(text)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ModelConfig(n_heads=7), "n_heads 7: must divide d_model 768; try n_heads 6"),
        (lambda: ModelConfig(context_length=0), "context_length 0"),
        (lambda: ModelConfig(dropout=1.0), "dropout 1.0"),
        (lambda: ModelConfig(norm="both"), "norm 'both': must be one of post, pre"),
        (lambda: ModelConfig(d_model=3, n_heads=1), "must be even for sinusoidal"),
        (lambda: DataConfig(max_vocab=5), "needs --vocabulary compact"),
        (lambda: DataConfig(validation_fraction=1.0), "validation_fraction"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate 0"),
        (lambda: OptimizerConfig(clip_norm=float("inf")), "clip_norm inf"),
        (
            lambda: OptimizerConfig(epsilon=1e-300),
            "epsilon 1e-300: must be at least 1.18e-38 .*, such as 1e-08",
        ),
        (lambda: OptimizerConfig(beta2=1 - 1e-9), "beta2 0.999999999: must be at least 0 and at most 0.9999999"),
        (
            lambda: OptimizerConfig(learning_rate=1e30),
            "learning_rate 1e[+]30 x weight_decay 0.01: must be at most 1, .*",
        ),
        (lambda: TrainingConfig(save_every=0), "save_every 0: must be at least 1"),
        (lambda: TrainingConfig(batch_size=10, gradient_accumulation=4), "gradient_accumulation 4"),
        (lambda: TrainingConfig(steps=0), "steps 0"),
    ],
)
def test_an_impossible_value_is_refused_by_name(make, names):
    with pytest.raises(UsageError, match=names):
        make()


def test_what_float32_holds_is_allowed():
    """The bounds of the optimizer's numbers, in the arithmetic that they are for."""
    bounds = OptimizerConfig(learning_rate=1.18e-38, epsilon=3.4e38, beta1=0.9999999, clip_norm=1.18e-38)
    for value in (bounds.learning_rate, bounds.epsilon, bounds.clip_norm):
        assert np.finfo(np.float32).tiny <= np.float32(value) < np.inf
    assert np.float32(bounds.beta1) < 1


def test_differences_name_each_field_and_both_values():
    a = Config(ModelConfig(d_model=96, n_heads=4), training=TrainingConfig(steps=5))
    b = dataclasses.replace(Config(), training=TrainingConfig(steps=6))
    assert a.differences(b, ignore=frozenset({"steps"})) == [
        "model.n_heads: 4 here, 12 there",
        "model.d_model: 96 here, 768 there",
    ]


def test_every_field_has_a_help_text():
    """The comment behind a field is its --help: one without would be a flag nobody can understand."""
    import inspect

    for cls in (ModelConfig, DataConfig, OptimizerConfig, TrainingConfig):
        source = inspect.getsource(cls)
        for item in dataclasses.fields(cls):
            line = next(line for line in source.splitlines() if line.strip().startswith(f"{item.name}:"))
            assert "  # " in line, item.name


def test_config_json_is_plain():
    document = json.loads(Config().to_json())
    assert set(document) == {"model", "data", "optimizer", "training", "origin"}
