"""Twelve families of chat templates and tokenizers, small: their special tokens, what their tokenizers put around a
text, what their templates write, refuse and leave out, and the tokens that end their turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TURNS = "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
ALTERNATE = (
    "{%- for m in turns -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- endfor -%}"
)
CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nYou are SYSTEM.<|im_end|>\n' }}{%- endif -%}"
)
NO_SYSTEM = "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"

LLAMA_2 = (
    TURNS
    + ALTERNATE
    + "{%- for m in turns -%}{%- if m.role == 'user' -%}{{ bos_token + '[INST] ' }}"
    + "{%- if loop.first and messages[0].role == 'system' -%}"
    + "{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{%- endif -%}"
    + "{{ m.content | trim + ' [/INST]' }}{%- else -%}{{ ' ' + m.content | trim + ' ' + eos_token }}{%- endif -%}"
    + "{%- endfor -%}"
)
LLAMA_3 = (
    "{{ bos_token }}{%- for m in messages -%}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
GEMMA_TURNS = (
    "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
    "{{ '<start_of_turn>' + role + '\n' }}FIRST{{ m.content | trim + '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA_2 = (
    "{{ bos_token }}"
    + NO_SYSTEM
    + "{%- set turns = messages -%}"
    + ALTERNATE
    + "{%- for m in messages -%}"
    + GEMMA_TURNS.replace("FIRST", "")
)
GEMMA_3 = (
    "{{ bos_token }}"
    + TURNS
    + ALTERNATE
    + "{%- for m in turns -%}"
    + GEMMA_TURNS.replace(
        "FIRST",
        "{%- if loop.first and messages[0].role == 'system' -%}{{ messages[0].content + '\n\n' }}{%- endif -%}",
    )
)
QWEN_3 = (  # only the last turn shows a thought, an empty one where it has none
    "{%- for m in messages -%}{%- if m.role != 'assistant' -%}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else -%}"
    "{%- set said = m.content.split('</think>')[-1].lstrip('\n') -%}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m.content else '' -%}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- if loop.last -%}{{ '<think>\n' + thought + '\n</think>\n\n' }}{%- endif -%}"
    "{{ said + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
MISTRAL = (  # an early one, which has no place for a system message
    "{{ bos_token }}{%- set turns = messages -%}"
    + ALTERNATE
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '[INST] ' + m.content + ' [/INST]' }}"
    + "{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}{%- endfor -%}"
)
PHI_3 = (  # an early one leaves system messages out; EOS stands at the end of a whole conversation
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '<|user|>\n' + m.content + '<|end|>\n' }}"
    "{%- elif m.role == 'assistant' -%}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'system' -%}{{ m.content }}"
    "{%- elif m.role == 'user' -%}{{ '<|User|>' + m.content }}"
    "{%- else -%}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\n' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Family:
    """`shown`, `said`: the prompt and the finished answer of `hi`, `ok` as the model is to see them."""

    name: str
    template: str | None
    special: tuple[str, ...]
    eos: str
    end: str  # the token that ends a turn
    shown: str
    said: str
    bos: str | None = None
    adds_bos: bool = False  # the tokenizer, in front of plain text
    adds_eos: bool = False
    ends: tuple[str, ...] = ()  # of the generation settings
    folds_system: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Bytes, and the family's special tokens as one token each."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens([*self.special, "<pad>"])
        around = [(token, raw.token_to_id(token)) for token in self.special]
        before = f"{self.bos} " if self.adds_bos else ""
        after = f" {self.eos}" if self.adds_eos else ""
        raw.post_processor = processors.TemplateProcessing(single=f"{before}$A{after}", special_tokens=around)
        made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=self.bos, eos_token=self.eos, pad_token="<pad>")
        made.chat_template = self.template
        return made

    def model(self, tokenizer: Any, follows: Mapping[int, int]) -> Any:
        """A Llama that says what follows each token, and after the rest the same again."""
        import torch

        count = 8 * -(-len(tokenizer) // 8)
        config = LlamaConfig(
            vocab_size=count, hidden_size=count, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=512, tie_word_embeddings=False,
        )  # fmt: skip
        lm = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, weight in lm.named_parameters():
                weight.fill_(1.0 if "norm" in name else 0.0)
            lm.model.embed_tokens.weight.copy_(torch.eye(count))
            for token in range(count):
                lm.lm_head.weight[follows.get(token, token), token] = 10.0
        lm.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(self.ends)) or None
        return lm


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = "<|im_start|>system\nYou are SYSTEM.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
ASK = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_ASK = "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
L3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
L3_ASK = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
R1 = ("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>")
R1_ASK = "<|begin_of_sentence|><|User|>hi<|Assistant|><think>\n"

FAMILIES = [
    Family("llama-2", LLAMA_2, ("<s>", "</s>"), "</s>", "</s>", "<s>[INST] hi [/INST]", " ok </s>", "<s>", True),
    Family(
        "llama-3", LLAMA_3, L3, "<|end_of_text|>", "<|eot_id|>", L3_ASK, "ok<|eot_id|>", L3[0], True,
        ends=("<|end_of_text|>", "<|eot_id|>"),
    ),
    Family(
        "gemma-2", GEMMA_2, GEMMA, "<eos>", "<end_of_turn>", GEMMA_ASK, "ok<end_of_turn>", "<bos>", True,
        ends=("<eos>",), folds_system=True,
    ),
    Family(
        "gemma-3", GEMMA_3, GEMMA, "<eos>", "<end_of_turn>", GEMMA_ASK, "ok<end_of_turn>", "<bos>", True,
        ends=("<eos>", "<end_of_turn>"),
    ),
    Family(
        "qwen-2.5", DEFAULT_SYSTEM + CHATML, IM, "<|im_end|>", "<|im_end|>", QWEN, "ok<|im_end|>",
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    Family("qwen-3", QWEN_3, IM, "<|im_end|>", "<|im_end|>", ASK, "<think>\n\n</think>\n\nok<|im_end|>"),
    Family(
        "qwen-3-no-thoughts", QWEN_3, IM, "<|im_end|>", "<|im_end|>", ASK + "<think>\n\n</think>\n\n", "ok<|im_end|>",
        options={"enable_thinking": False},
    ),
    Family(
        "mistral", MISTRAL, ("<s>", "</s>"), "</s>", "</s>", "<s>[INST] hi [/INST]", " ok</s>", "<s>", True, True,
        folds_system=True,
    ),
    Family(
        "phi-3", PHI_3, ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<|end|>",
        "<|user|>\nhi<|end|>\n<|assistant|>\n", "ok<|end|>", "<s>", True, ends=("<|endoftext|>",), folds_system=True,
    ),
    Family("deepseek-r1", DEEPSEEK_R1, R1, R1[1], R1[1], R1_ASK, f"\n</think>\n\nok{R1[1]}", R1[0], True),
    Family(
        "smollm2", DEFAULT_SYSTEM + CHATML, IM, "<|im_end|>", "<|im_end|>", QWEN, "ok<|im_end|>", "<|im_start|>",
    ),
    Family("chatml-on-a-base", CHATML, IM, "<|endoftext|>", "<|im_end|>", ASK, "ok<|im_end|>"),
    Family("no-template", None, ("<s>", "</s>"), "</s>", "</s>", "<s>hi", "ok</s>", "<s>", True, True),
]  # fmt: skip
