"""Text encoders without a network: open_clip's tower, and transformers models made here."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import rows_of

from ctgrounding.encoders.text import open_clip
from ctgrounding.encoders.text.base import pool
from ctgrounding.encoders.text.hashed import HashedEmbedding
from ctgrounding.encoders.text.open_clip import OpenClipText, OpenClipTokenizer
from ctgrounding.encoders.text.sentences import SentenceText, SentenceTokenizer, _sentences
from ctgrounding.encoders.text.transformers import Lora, TransformersText
from ctgrounding.errors import ConfigError

TEXTS = [
    "No pleural effusion.",
    "There is a 12 mm cyst in the upper pole of the left kidney, see series 4, image 38. " * 4,
    "Normal liver.",
    "Small hiatal hernia; otherwise the oesophagus is unremarkable.",
]


@settings(deadline=None)
@given(st.text(st.sampled_from("aB1 .,;&<>'\"-/%\t\n\x1f\x7fé²amp"), max_size=60))
def test_open_clip_tokens_of_a_text_are_those_of_the_library(text):
    assert OpenClipTokenizer(512)(text).tolist()[1:-1] == open_clip._bundled().encode(text)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def open_clip_text():
    torch.manual_seed(0)
    return OpenClipText(width=32, layers=2, heads=2, context_length=128)


def test_tokenizer_cuts_but_keeps_the_end_mark():
    tokenizer = OpenClipTokenizer(context_length=10)
    row = tokenizer(TEXTS[1])
    assert (len(row), row[0].item(), row[-1].item()) == (10, 49406, 49407)
    assert tokenizer.count(TEXTS[1]) > 80
    assert tokenizer.count(TEXTS[2]) == len(tokenizer(TEXTS[2])) == 5
    assert row[1:-1].tolist() == OpenClipTokenizer()(TEXTS[1])[1:9].tolist()


def test_tokenizer_agrees_with_open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    (expected,) = SimpleTokenizer()(TEXTS[3], context_length=77)
    row = OpenClipTokenizer(77)(TEXTS[3])
    torch.testing.assert_close(row, expected[: len(row)])
    assert expected[len(row) :].eq(0).all()


def test_open_clip_tokenizer_is_small_to_pickle():
    stored = pickle.dumps(OpenClipTokenizer(64))
    assert len(stored) < 500
    assert pickle.loads(stored)(TEXTS[0]).tolist() == OpenClipTokenizer(64)(TEXTS[0]).tolist()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("hashed_rows", [None, 64])
def test_rows_do_not_depend_on_batch_padding_or_buckets(pooling, hashed_rows):
    torch.manual_seed(0)
    encoder = OpenClipText(width=32, layers=2, heads=2, context_length=128, pooling=pooling, hashed_rows=hashed_rows)
    tokens, mask = rows_of(encoder, TEXTS)
    together = encoder(tokens, mask)
    encoder.bucket_ratio = float("inf")
    torch.testing.assert_close(encoder(tokens, mask), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(tokens.masked_fill(~mask, 777), mask), together, rtol=1e-4, atol=1e-5)
    for place, text in enumerate(TEXTS):
        torch.testing.assert_close(encoder(*rows_of(encoder, [text]))[0], together[place], rtol=1e-4, atol=1e-5)


def test_tower_without_projection_equals_open_clips_own_forward(open_clip_text):
    tower = open_clip_text.tower
    rows = OpenClipTokenizer(128)(TEXTS[1])
    full = torch.zeros(1, 128, dtype=torch.int64)
    full[0, : len(rows)] = rows
    open_clip_text.pooling = "last"
    found = open_clip_text(rows[None], torch.ones(1, len(rows), dtype=torch.bool))
    open_clip_text.pooling = "mean"
    torch.testing.assert_close(found, tower(full), rtol=1e-4, atol=1e-5)  # argmax pooling finds the end mark


def test_no_texts_give_no_rows(open_clip_text):
    none = torch.zeros(0, 5, dtype=torch.int64)
    assert open_clip_text(none, none.bool()).shape == (0, 32)


def test_every_parameter_gets_a_gradient(open_clip_text):
    open_clip_text(*rows_of(open_clip_text, TEXTS)).square().sum().backward()
    assert [name for name, parameter in open_clip_text.named_parameters() if parameter.grad is None] == []


def test_hashed_embedding_tells_all_tokens_apart():
    embedding = HashedEmbedding(4096, 2)
    torch.nn.init.uniform_(embedding.weight)
    vectors = embedding(torch.arange(49408))
    assert len(torch.unique(vectors, dim=0)) >= 49408 - 400  # two hashes agree by chance for about 70 pairs
    used = torch.unique(embedding.weight[:4096], dim=0)
    assert len(used) == 4096


def test_pooling_against_loops():
    states, mask = torch.randn(3, 6, 4), torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] + [0] * 5]).bool()
    for row, length in enumerate((6, 2, 1)):
        torch.testing.assert_close(pool(states, mask, "mean")[row], states[row, :length].mean(0))
        torch.testing.assert_close(pool(states, mask, "last")[row], states[row, length - 1])
        torch.testing.assert_close(pool(states, mask, "first")[row], states[row, 0])


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_transformers_model_by_folder(bert_folder, pooling):
    from transformers import AutoModel

    encoder = TransformersText(bert_folder, pooling=pooling, tuning="full", context_length=64).eval()
    assert encoder.width == 16
    tokens, mask = rows_of(encoder, TEXTS)
    assert tokens.shape[1] == 64
    assert encoder.tokenizer.count(TEXTS[1]) > 64
    reference = AutoModel.from_pretrained(bert_folder).eval()
    states = reference(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder(tokens, mask), pool(states, mask, pooling), rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(encoder.tokenizer))
    assert again(TEXTS[0]).tolist() == encoder.tokenizer(TEXTS[0]).tolist()


def test_tuning_says_what_is_trained(bert_folder):
    frozen = TransformersText(bert_folder, tuning="frozen", context_length=64).train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.tower.training
    assert not frozen(*rows_of(frozen, TEXTS)).requires_grad
    lora = TransformersText(bert_folder, lora=Lora(rank=2, targets=["query", "value"]), context_length=64)
    trained = [name for name, parameter in lora.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name for name in trained)
    assert all(module.training for module in lora.modules())  # a model of transformers comes in evaluation mode
    lora(*rows_of(lora, TEXTS)).sum().backward()
    full = TransformersText(bert_folder, tuning="full", context_length=64)
    full(*rows_of(full, TEXTS)).square().sum().backward()
    without = [name for name, item in full.named_parameters() if item.requires_grad and item.grad is None]
    assert without == []


def test_refusals(bert_folder):
    with pytest.raises(ConfigError, match=r"Text model 'no/such-model' is neither a folder"):
        TransformersText("no/such-model")
    with pytest.raises(ConfigError, match=r"reads 128 tokens; context_length is 512"):
        TransformersText(bert_folder)
    with pytest.raises(ConfigError, match=r"LoRA finds no module \['q_proj'\].*'key', 'query', 'value'"):
        TransformersText(bert_folder, lora=Lora(targets=["q_proj"]), context_length=64)
    with pytest.raises(ConfigError, match=r"LoRA finds no module \['q_proj'\]"):
        TransformersText(bert_folder, lora=Lora(targets=["query", "q_proj"]), context_length=64)
    with pytest.raises(ConfigError, match=r"peft cannot adapt \['LayerNorm'\]"):
        TransformersText(bert_folder, lora=Lora(targets=["LayerNorm"]), context_length=64)
    with pytest.raises(ConfigError, match="rank of at least 1"):
        TransformersText(bert_folder, lora=Lora(rank=0), context_length=64)
    with pytest.raises(ConfigError, match="lora has no effect where tuning is frozen"):
        TransformersText(bert_folder, tuning="frozen", lora=Lora(), context_length=64)
    for length in (0, 1):
        with pytest.raises(ConfigError, match=f"a token at least, but context_length is {length}"):
            TransformersText(bert_folder, tuning="frozen", context_length=length)
    with pytest.raises(ConfigError, match="cannot be split into 5 heads"):
        OpenClipText(width=32, heads=5)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_folder_without_tokenizer_files_is_refused(kind, tmp_path):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=60, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer files, so every text would be without words"):
        TransformersText(str(tmp_path), tuning="frozen", context_length=32)


def test_positions_of_robertas_kin_begin_behind_the_padding(bert_folder, tmp_path):
    from transformers import AutoTokenizer, LongformerConfig, LongformerModel, RobertaConfig, RobertaModel

    sizes = {"vocab_size": 200, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    kin = {
        "roberta": RobertaModel(RobertaConfig(**sizes, num_hidden_layers=1, max_position_embeddings=34)),
        "longformer": LongformerModel(
            LongformerConfig(**sizes, num_hidden_layers=1, max_position_embeddings=34, attention_window=[8])
        ),
    }
    for name, tower in kin.items():
        tower.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match="reads 32 tokens; context_length is 33"):
            TransformersText(str(tmp_path / name), tuning="full", context_length=33)
        encoder = TransformersText(str(tmp_path / name), tuning="full", context_length=32).eval()
        tokens = torch.full((1, 32), 7)
        assert encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).isfinite().all()
    with pytest.raises(ConfigError, match=r"peft knows no usual targets for .*longformer.*'query_global'"):
        TransformersText(str(tmp_path / "longformer"), context_length=32)


class TestSentenceText:
    """Against the inner encoder on each sentence by itself."""

    texts = (
        "Cyst in the left kidney. No effusion. The liver is enlarged.",
        "No effusion.",
        "No effusion.\nNo effusion. Cyst in the left kidney.",
    )

    @pytest.fixture
    def encoder(self):
        torch.manual_seed(0)
        inner = OpenClipText(width=16, layers=1, heads=2, context_length=32)
        return SentenceText(inner, context_length=64, parts=["mean", "max", "attention"]).double()

    def test_encode__against_one_sentence_at_a_time(self, encoder):
        with torch.no_grad():
            encoder.query.queries.mul_(50)
        found = encoder(*rows_of(encoder, self.texts))
        assert found.shape == (3, 48)
        assert encoder.width == 48
        for text, vector in zip(self.texts, found, strict=True):
            sentences = [f"{part.strip()}." for part in text.replace("\n", " ").split(".") if part.strip()]
            alone = torch.cat([encoder.sentence(*rows_of(encoder.sentence, [sentence])) for sentence in sentences])
            weight = encoder.query(alone[None])[0]
            attended = (weight * alone).sum(0) / weight.sum()
            torch.testing.assert_close(vector, torch.cat([alone.mean(0), alone.max(0).values, attended]))

    def test_encode__equal_sentences_once_and_order_does_not_matter(self, encoder):
        passed = []
        encoder.sentence.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
        turned = "The liver is enlarged. Cyst in the left kidney. No effusion."
        found = encoder(*rows_of(encoder, [self.texts[0], turned, self.texts[2]]))
        assert passed == [3]
        torch.testing.assert_close(found[0], found[1])
        assert not torch.allclose(found[0], found[2])

    def test_sentences__those_of_torch_unique_in_its_order(self):
        torch.manual_seed(0)
        tokens = torch.randint(-1, 3, (40, 9))  # boundaries anywhere: first, last, side by side
        lengths = torch.randint(1, 10, (40,))
        mask = torch.arange(9) < lengths[:, None]
        rows, texts = [], []
        for number, (row, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            pieces = [[]]
            for token in row[:length]:
                pieces.append([]) if token == -1 else pieces[-1].append(token)
            rows += [piece + [-1] * (9 - len(piece)) for piece in pieces]
            texts += [number] * len(pieces)
        expected, where = torch.unique(torch.tensor(rows), dim=0, return_inverse=True)
        unique, shown, which, text = _sentences(tokens, mask, pad_id=7)
        longest = unique.shape[1]
        torch.testing.assert_close(unique.masked_fill(~shown, -1), expected[:, :longest])
        assert (expected[:, longest:] == -1).all()
        assert (unique[~shown] == 7).all()
        assert which.tolist() == where.tolist()
        assert text.tolist() == texts

    def test_encode__every_parameter_learns(self, encoder):
        encoder(*rows_of(encoder, self.texts)).square().sum().backward()
        still = [name for name, item in encoder.named_parameters() if item.grad is None or not item.grad.any()]
        assert still == []

    def test_tokenizer__long_sentences_are_cut_between_words_and_long_texts_counted(self):
        tokenizer = SentenceTokenizer(OpenClipTokenizer(8), context_length=40)
        text = "liver " * 12
        tokens, (start, liver, end) = tokenizer(text), tokenizer.inner("liver").tolist()
        assert tokens.tolist() == [*[start, *[liver] * 6, end], -1, *[start, *[liver] * 6, end]]
        assert tokenizer.count(text) == len(tokens)
        longer = "liver " * 60
        assert len(tokenizer(longer)) <= 40 < tokenizer.count(longer)

    def test_tokenizer__no_sentence_and_pickle(self, encoder):
        tokenizer = pickle.loads(pickle.dumps(encoder.tokenizer))
        assert tokenizer("").tolist() == tokenizer.inner("").tolist()
        assert encoder(*rows_of(encoder, ["", "No effusion."])).isfinite().all()

    def test_init__refusals(self):
        inner = OpenClipText(width=16, layers=1, heads=2, context_length=32)
        with pytest.raises(ConfigError, match="less than a sentence's 32"):
            SentenceText(inner, context_length=31)
        with pytest.raises(ConfigError, match="SentenceText takes parts"):
            SentenceText(inner, parts=["median"])
