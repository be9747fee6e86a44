"""Pooling by attention, and vectors of frozen towers kept on disk."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ctgrounding.encoders.text.base import TokenAttention
from ctgrounding.encoders.text.cache import VectorCache, row_keys
from ctgrounding.encoders.text.open_clip import OpenClipText
from ctgrounding.encoders.text.transformers import TransformersText
from ctgrounding.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = {
        word: place for place, word in enumerate(["[PAD]", "[UNK]", "no", "small", "cyst", "effusion", "of", "liver"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=8, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return str(folder)


def rows(encoder, *texts):
    found = [encoder.tokenizer(text) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
    lengths = torch.tensor([len(row) for row in found])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def frozen(folder, cache, **changes):
    return TransformersText(folder, **({"tuning": "frozen", "context_length": 32, "cache": str(cache)} | changes))


def counted(encoder):
    passed = []
    encoder.tower.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return passed


def test_each_text_is_encoded_once_by_any_process(folder, tmp_path):
    encoder = frozen(folder, tmp_path)
    passed = counted(encoder)
    first = encoder(*rows(encoder, "no cyst", "small effusion"))
    torch.testing.assert_close(
        first, TransformersText(folder, tuning="frozen", context_length=32)(*rows(encoder, "no cyst", "small effusion"))
    )
    second = encoder(*rows(encoder, "small effusion", "no effusion", "no cyst"))
    assert sum(passed) == 3
    assert torch.equal(second[[2, 0]], first)
    other = frozen(folder, tmp_path)
    passed = counted(other)
    assert torch.equal(other(*rows(other, "no cyst")), first[:1])
    assert passed == []
    assert not first.requires_grad


def test_other_weights_precision_and_pooling_have_vectors_of_their_own(folder, tmp_path):
    encoder = frozen(folder, tmp_path)
    before = encoder(*rows(encoder, "no cyst of liver"))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(*rows(encoder, "no cyst of liver"))
    frozen(folder, tmp_path, pooling="first")(*rows(encoder, "no cyst of liver"))
    encoder.load_state_dict({name: value * 1.5 for name, value in encoder.state_dict().items()})
    after = encoder(*rows(encoder, "no cyst of liver"))
    assert not torch.allclose(before, after)
    assert len(list(tmp_path.glob("*.sqlite"))) == 4


def test_rows_are_told_apart_by_their_real_tokens_alone():
    tokens, mask = (
        torch.tensor([[1, 2, 3], [1, 2, 9], [1, 2, 3]]),
        torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]]).bool(),
    )
    first, second, third = row_keys(tokens, mask)
    assert first == second != third


def test_several_writers_at_once(tmp_path):
    def write(start):
        cache = VectorCache(tmp_path)
        for number in range(start, start + 40):
            cache.write("weights", {str(number).encode(): torch.full((3,), float(number))})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [0, 20, 40, 60]))
    found = VectorCache(tmp_path).read("weights", [str(number).encode() for number in range(600)])
    assert len(found) == 100
    assert all(torch.equal(vector, torch.full((3,), float(key))) for key, vector in found.items())


def test_a_file_that_is_no_cache_is_named(folder, tmp_path):
    encoder = frozen(folder, tmp_path)
    encoder(*rows(encoder, "cyst"))
    (file,) = tmp_path.glob("*.sqlite")
    file.write_bytes(b"something else" * 100)
    again = pickle.loads(pickle.dumps(VectorCache(tmp_path)))
    with pytest.raises(ConfigError, match=f"{file.name} cannot be used"):
        again.read(file.stem, [b"key"])


def test_refusals(folder, tmp_path):
    with pytest.raises(ConfigError, match="tuning is full"):
        frozen(folder, tmp_path, tuning="full")
    with pytest.raises(ConfigError, match="pooling attention"):
        frozen(folder, tmp_path, pooling="attention")
    (tmp_path / "file").touch()
    encoder = frozen(folder, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"The text cache .*file cannot be made \(File exists\)"):
        encoder(*rows(encoder, "cyst"))


def test_attention_pooling_against_a_softmax(folder):
    pooling = TokenAttention(16)
    with torch.no_grad():
        pooling.query.queries.mul_(20)
    states, mask = torch.randn(3, 5, 16), torch.arange(5) < torch.tensor([[5], [2], [1]])
    found = pooling(states, mask)
    score = 12 * torch.tanh(states @ pooling.query.queries[0] / 4 / 12)
    weight = score.masked_fill(~mask, -torch.inf).softmax(1)
    torch.testing.assert_close(found, (weight[..., None] * states).sum(1))


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_attention_pooling_learns_where_the_tower_is_frozen_too(folder, tuning):
    encoder = TransformersText(folder, pooling="attention", tuning=tuning, context_length=32)
    encoder(*rows(encoder, "no cyst", "small effusion of liver")).square().sum().backward()
    assert encoder.attention.query.queries.grad.abs().max() > 0
    learned = {name for name, item in encoder.tower.named_parameters() if item.grad is not None}
    assert bool(learned) == (tuning == "full")


def test_open_clip_pools_by_attention():
    encoder = OpenClipText(width=16, layers=1, heads=2, context_length=16, pooling="attention")
    tokens, mask = rows(encoder, "no cyst", "a small effusion")
    together = encoder(tokens, mask)
    torch.testing.assert_close(together[:1], encoder(*rows(encoder, "no cyst")), rtol=1e-4, atol=1e-5)
