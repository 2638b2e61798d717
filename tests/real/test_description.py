"""The description and the tokens of pretrained models, compared with transformers."""

from __future__ import annotations

import base64

import pytest

from tests.real.subject import PAIRS, Subject

pytestmark = pytest.mark.slow
TEXT = "Don't add 12 to 3,456 –\n\n  or  do, naïve 🐁 x."


def test_model_is_described_as_it_is(subject: Subject) -> None:
    """Widths, names and positions are those of transformers' model, and the self-check holds."""
    found, config = subject.described, subject.model.config
    assert found["self_check"]["verdict"] == "holds"
    assert found["self_check"]["layers"] == found["n_layers"] == config.num_hidden_layers
    assert (found["d_model"], found["d_mlp"]) == (config.hidden_size, config.intermediate_size)
    assert found["n_positions"] == config.max_position_embeddings
    assert found["vocab_size"] == config.vocab_size
    assert (found["positions"], found["parallel"]) == ("relative", False)
    assert found["post_norms"] == (config.model_type == "gemma3_text")
    assert found["anchor"] == subject.tokenizer.bos_token or found["anchor"] == "<|endoftext|>"
    for name in found["first_weights"]:
        shape = subject.model.get_parameter(name.format(layer=0)).shape
        assert shape == (found["d_mlp"], found["d_model"])
    assert not found["fan_in_fan_out"]


def test_tokens_are_transformers(subject: Subject) -> None:
    """Ids are those of transformers, as in `activations`. Texts and bytes restore the text, and
    offsets cover it."""
    (told,) = subject.ask("tokenize", prompts=[TEXT])["prompts"]
    tokens = told["tokens"]
    assert [token["id"] for token in tokens] == subject.ids(TEXT)
    (run,) = subject.ask("activations", prompts=[TEXT], layers=[0], reduce="norm")["prompts"]
    assert [token["id"] for token in run["tokens"]] == subject.ids(TEXT)
    tokens = [token for token in tokens if "special" not in token]
    spelled = (base64.b64decode(t["bytes"]) if "bytes" in t else t["text"].encode() for t in tokens)
    assert b"".join(spelled) == TEXT.encode()
    covered = {place for token in tokens for place in range(*token["offset"])}
    assert covered == set(range(len(TEXT)))


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_tokenised_apart(subject: Subject, pair: str) -> None:
    """The context has the ids of transformers, the query those without special tokens."""
    context, query = PAIRS[pair]
    told = subject.ask("tokenize", context=context, query=query)
    for part, text in (("context", context), ("query", query)):
        ids = subject.ids(text, special=part == "context")
        assert [token["id"] for token in told[part]["tokens"]] == ids
    assert told["border_merges"] is False
