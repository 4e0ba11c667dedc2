"""Hugging Face's GPT-2 in the same size, and its `generate` with a cache."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, logging

from tinygpt_jax.config import Config


class Writer:
    """float32 on a CPU, bfloat16 on a GPU."""

    def __init__(self, config: Config) -> None:
        logging.set_verbosity_error()
        model = config.model
        gpt2 = GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.context_length,
            n_embd=model.d_model,
            n_layer=model.n_layers,
            n_head=model.n_heads,
            n_inner=model.d_ff,
            bos_token_id=None,
            eos_token_id=None,
        )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self.model = GPT2LMHeadModel(gpt2).to(self._device, dtype).eval()

    def write(self, prompts: np.ndarray, length: int) -> np.ndarray:
        inputs = torch.from_numpy(prompts).long().to(self._device)
        with torch.inference_mode():
            tokens = self.model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=length, do_sample=False, pad_token_id=0
            )
        return tokens[:, prompts.shape[1] :].cpu().numpy().astype(np.int32)
