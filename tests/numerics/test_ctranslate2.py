"""CTranslate2 against our own search: the same hypotheses with the same scores, from an exported directory."""

import sys

import pytest
import torch

from kdlab.decoding.beam import BeamConfig, Hypothesis
from kdlab.decoding.ctranslate2 import CTranslate2Model
from kdlab.decoding.translate import planned, translate
from kdlab.deploy.ctranslate2 import export
from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig

SRC_VOCAB, TGT_VOCAB, EOS = 67, 41, 0
SHARPNESS, EOS_GAIN = 3.0, 5.0
STYLES = [
    dict(norm="post", tie="all", activation="relu"),
    dict(norm="post", tie="decoder_softmax", activation="gelu", softmax_bias=True),
    dict(norm="post", tie="none", activation="swiglu"),
    dict(norm="pre", tie="all", activation="silu", softmax_bias=True),
    dict(norm="pre", tie="decoder_softmax", activation="swiglu"),
    dict(norm="pre", tie="none", activation="relu", softmax_bias=True),
]


@torch.no_grad()
def build(seed=1, **style):
    """A random model, no bias zero and no norm one, that repeats itself little and ends now and then.

    Tokens are small beside positions and attention large, or every token would call for itself.
    """
    src_vocab = TGT_VOCAB if style["tie"] == "all" else SRC_VOCAB
    model = Transformer(TransformerConfig(src_vocab, TGT_VOCAB, 2, 3, 32, 48, 4, max_positions=40, **style))
    random_init(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.mul_(0.4 if "embedding" in name or name == "softmax_weight" else 1.5)
    # Standardise the logits of random inputs: no token is likely everywhere, EOS is a little likelier than others.
    last, head = model.decoder_norm if style["norm"] == "pre" else model.decoder[-1].around_ff.norm, model.head()
    tgt_in_BT = torch.randint(2, TGT_VOCAB - 1, (50, 10), generator=generator)
    src_BS = torch.randint(2, src_vocab - 1, (50, 10), generator=generator)
    hidden_ND = model.eval()(src_BS, torch.ones(50, 10).bool(), tgt_in_BT).decoder_ND
    scale = SHARPNESS / (hidden_ND - hidden_ND.mean(0)).matmul(head.weight_VD.T).std()
    last.bias.sub_(hidden_ND.mean(0))
    for parameter in (last.weight, last.bias):
        parameter.mul_(scale)
    last.bias.add_(EOS_GAIN * head.weight_VD[EOS] / head.weight_VD[EOS].square().sum())
    return model


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("ctranslate2")


def pieces(size):
    return ["</s>", "<unk>", *(f"p{index}" for index in range(2, size - 1))]


def exported(model, folder, **options):
    sizes = (model.config.src_vocab_size, model.config.tgt_vocab_size)
    export(model, pieces(sizes[0]), pieces(sizes[1]), folder, **options)
    return CTranslate2Model.open(folder, device="cpu", threads=1)


def translated(other, batch, config, batch_tokens=10**6):
    """As `translate` plans batches, by the exported model."""

    def search(batches):
        return other.search(([batch[at] for at in one] for one in batches), config)

    return planned(search, [len(x) for x in batch], batch_tokens=batch_tokens, beam_size=config.beam_size)


def sources(model, number=24, longest=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (number,), generator=generator).tolist()
    last = model.config.src_vocab_size - 1
    return [[*torch.randint(1, last, (length,), generator=generator).tolist(), EOS] for length in lengths]


@pytest.fixture(scope="module", params=STYLES, ids=lambda style: "-".join(map(str, style.values())))
def both(request, tmp_path_factory):
    pytest.importorskip("ctranslate2")
    model = build(**request.param)
    return model, exported(model, tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize(("beam", "penalty", "n_best"), [(1, 1.0, 1), (5, 1.0, 1), (5, 0.0, 1), (5, 0.6, 3)])
def test_both_engines_find_the_same_with_the_same_scores(both, beam, penalty, n_best):
    model, other = both
    config = BeamConfig(beam, penalty, n_best=n_best, max_length_ratio=1.5, max_length_extra=4)
    batch = sources(model)
    ours = translate(model, batch, config, batch_tokens=700)
    theirs = translated(other, batch, config, batch_tokens=700)
    for mine, found in zip(ours, theirs, strict=True):
        assert [(h.ids, h.finished) for h in found] == [(h.ids, h.finished) for h in mine]
        assert [h.score for h in found] == pytest.approx([h.score for h in mine], abs=1e-4)
        assert [h.log_prob for h in found] == pytest.approx([h.log_prob for h in mine], abs=1e-3)
        assert all(TGT_VOCAB - 1 not in h.ids for h in found)
    best = [found[0] for found in theirs]
    assert {h.finished for h in best} == {True, False} and len({tuple(h.ids) for h in best}) > 9


def test_a_padding_id_that_is_likeliest_everywhere_is_never_produced(tmp_path):
    model = build(norm="post", tie="none", softmax_bias=True)
    with torch.no_grad():
        model.softmax_bias[-1] = 50.0
    batch, config = sources(model, 8), BeamConfig(3, 1.0)
    ours, theirs = translate(model, batch, config, batch_tokens=99), exported(model, tmp_path)
    assert [x[0].ids for x in translated(theirs, batch, config, batch_tokens=99)] == [x[0].ids for x in ours]


def test_neither_threads_nor_batches_change_a_result(tmp_path):
    model = build(**STYLES[4])
    batch, config = sources(model), BeamConfig(4, 1.0)
    one = exported(model, tmp_path)
    whole = translated(one, batch, config, batch_tokens=10_000)
    two = CTranslate2Model.open(tmp_path, device="cpu", threads=2)
    assert translated(two, batch, config, batch_tokens=300) == translated(one, batch, config, batch_tokens=300)
    assert [x[0].ids for x in translated(one, batch, config, batch_tokens=1)] == [x[0].ids for x in whole]
    assert list(one.search([[], batch[:1], []], config))[::2] == [[], []]


def test_a_source_without_tokens_gets_an_empty_hypothesis_and_leaves_the_others_alone(tmp_path):
    model, config = build(**STYLES[3]), BeamConfig(2, 1.0)
    batch = [[EOS], [1, EOS], [7, 9, EOS]]
    found = translated(exported(model, tmp_path), batch, config, batch_tokens=100)
    assert found[0] == [Hypothesis([], 0.0, 0.0, finished=True)]
    ours = translate(model, batch[1:], config, batch_tokens=100)
    assert [(x[0].ids, x[0].finished) for x in found[1:]] == [(x[0].ids, x[0].finished) for x in ours]


@pytest.mark.parametrize(("quantization", "worst"), [("bf16", 0.1), ("fp16", 0.02), ("int8", 0.3)])
def test_quantized_weights_are_smaller_and_nearly_say_the_same(quantization, worst, tmp_path):
    model, config = build(**STYLES[1]), BeamConfig(1, 1.0)
    batch = sources(model, 30)
    exact = translated(exported(model, tmp_path / "exact"), batch, config, batch_tokens=500)
    near = translated(exported(model, tmp_path / "near", quantization=quantization), batch, config, batch_tokens=500)
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("near", "exact")]
    assert sizes[0] < 0.75 * sizes[1]
    same = [(a[0].score, b[0].score) for a, b in zip(exact, near, strict=True) if a[0].ids == b[0].ids]
    assert len(same) > len(batch) // 2
    assert 0 < max(abs(a - b) for a, b in same) < worst


def test_what_would_translate_differently_is_refused(tmp_path, monkeypatch):
    model = build(**STYLES[1])
    src, tgt = pieces(SRC_VOCAB), pieces(TGT_VOCAB)
    with pytest.raises(UserError, match="67 and 41 ids.*66 and 41.*tokenizer it was trained with"):
        export(model, src[:-1], tgt, tmp_path)
    with pytest.raises(UserError, match="quantization is 'int4'.*write one of none, int8, bf16, fp16"):
        export(model, src, tgt, tmp_path, quantization="int4")
    with torch.no_grad():
        model.tgt_embedding.weight[-1, 0] = 0.1
    with pytest.raises(UserError, match="padding id is not zero"):
        export(model, src, tgt, tmp_path)
    with pytest.raises(UserError, match="is no CTranslate2 directory that kdlab has exported"):
        CTranslate2Model.open(tmp_path, device="cpu", threads=1)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"pip install 'kdlab\[ct2\]'"):
        export(model, src, tgt, tmp_path)
