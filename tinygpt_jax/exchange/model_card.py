"""The page that describes an exported model where it is shared."""

import math

import jax

from tinygpt_jax.exchange.folders import portable
from tinygpt_jax.tokenizer import GPT2_VOCAB_SIZE
from tinygpt_jax.training.checkpoint import Run


def model_card(run: Run, command: str, validation_loss: float) -> str:
    """The README.md of a folder for Hugging Face's hub, with the run's figures.

    Args:
        run: the model.
        command: how to train it again.
        validation_loss: in nats per token, at `run.step`; infinite where it was not measured.
    """
    config = portable(run.config)
    model, data, origin = config.model, config.data, config.origin
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    whose = "of the model it began with" if origin.init_from else "that occur in the stories"
    head = "tied to the embedding" if model.tie_embeddings else "of its own"
    source = {"builtin": "the built-in stories of tinygpt_jax", "tinystories": "TinyStories (roneneldan/TinyStories)"}
    figures = {
        "parameters": f"{count:,}",
        "layers, heads, d_model, d_ff": f"{model.n_layers}, {model.n_heads}, {model.d_model}, {model.d_ff}",
        "block": f"{model.norm}-LN, {model.activation.upper() if model.activation == 'gelu' else 'ReLU'}",
        "positions": f"{model.context_length}, {model.positions}",
        "head": head,
        "vocabulary": f"{model.vocab_size:,} tokens"
        + ("" if data.vocabulary == "gpt2" else f" of GPT-2's, those {whose}"),
        "updates": f"{run.step:,} of {config.training.batch_size} rows",
    }
    if math.isfinite(validation_loss):
        loss = f"{validation_loss:.4f} nats/token (perplexity {math.exp(validation_loss):.2f})"
        figures["loss on held-out stories"] = f"{loss}, on {config.training.eval_batches} fixed batches"
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    base = f"`{origin.init_from}` (the sha256 of its parameters is `{origin.sha256}`)"
    how = f"Fine-tuned from {base}" if origin.init_from else "Trained"
    trained = f"{how} on {source.get(data.source, data.source)} with\n\n```\n{command}\n```"
    if run.step == 0:
        trained = f"The parameters of {base}, not trained further." if origin.init_from else "Not trained here."
    return f"""---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [tinygpt_jax, tinystories]
---

# A small GPT that writes stories

{trained}

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
prompt = tokenizer("Once upon a time", return_tensors="pt")
tokens = model.generate(**prompt, max_new_tokens=100, do_sample=True, temperature=0.8)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```

A text has at most {model.context_length} tokens, with the prompt. The tokenizer begins it with `<|endoftext|>`, as
every story in training was begun, and pads with it; several prompts at once need `padding_side="left"`. In a text,
`<|endoftext|>` is that token; with `split_special_tokens=True` it is spelled out, as tinygpt_jax does.
{_vocabulary_note(run)}"""


def _vocabulary_note(run: Run) -> str:
    if run.tokenizer.vocab_size == GPT2_VOCAB_SIZE:
        return ""
    return """
The vocabulary is cut from GPT-2's, and what it lacks is spelled in single bytes. tokenizer.json does exactly that, in
50,000 replacements: about 0.1 s for a story. The offsets it gives are not those of the tokens.
"""
