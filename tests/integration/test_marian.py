"""Hugging Face Marian models as teachers: their ids, their logits, their translations, and what must be refused."""

import json
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hydra.utils import get_method
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer

from kdlab import files, run
from kdlab.compose import compose
from kdlab.data.batching import evaluation_batches
from kdlab.data.marian import read_marian_tokenizer
from kdlab.data.prepared import PreparedCorpus
from kdlab.data.tokenizer import Tokenizer
from kdlab.data.toy import generate
from kdlab.decoding.beam import BeamConfig, beam_search
from kdlab.errors import UserError
from kdlab.models.folder import load_model
from kdlab.models.huggingface import read_marian
from kdlab.stages import convert_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

PAIRS = list(generate("train", 400, 1))
LINES = [
    *(src for src, _ in PAIRS[:20]),
    ">>fra<< Der Hund schläft.",
    ">>fra<<Der Hund",
    "  zwei   Leerzeichen \t und ﬁ Ligatur, \uff22reite ½ ",
    "Ж unbekannt ⁇ 漢字",
    "<unk> steht da",
    "",
    "a >> b << c",
    ">>Der Hund",
]


def trained_model(lines: list[str], vocab_size: int) -> bytes:
    """A SentencePiece model with the usual ids of its own, as OPUS-MT's are."""
    writer = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=writer, vocab_size=vocab_size, num_threads=1, minloglevel=2
    )
    return writer.getvalue()


def save_vocabulary(folder: Path, pieces: list[str]) -> None:
    """vocab.json with these pieces in the order of ids."""
    files.write_json(folder / "vocab.json", {piece: index for index, piece in enumerate(pieces)})


def save_weights(folder: Path, extra_rows: int = 0, **shape) -> MarianMTModel:
    """A random model for the vocabulary in a folder; its distribution is not flat, and a hypothesis ends at times."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    size, pad, eos = len(vocabulary), vocabulary["<pad>"], vocabulary["</s>"]
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=2, max_position_embeddings=96)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)
    ids = dict(pad_token_id=pad, eos_token_id=eos, decoder_start_token_id=pad, forced_eos_token_id=None)
    usual = dict(scale_embedding=True, activation_function="swish", dropout=0.1, vocab_size=size)
    config = MarianConfig(**{**sizes, **heads, **ids, **usual, **shape})
    torch.manual_seed(3)
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "embed_positions" not in name:
                weight.normal_(std=0.3 if weight.dim() > 1 else 0.1)
                if "layer_norm.weight" in name:
                    weight.add_(1.0)
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, pad] = -100.0  # else Hugging Face's softmax gives padding its share
        model.final_logits_bias[0, eos] = 8.0
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
    if extra_rows:
        pad_tables(folder / "model.safetensors", extra_rows)
        config = json.loads((folder / "config.json").read_text())
        files.write_json(folder / "config.json", {**config, "vocab_size": size + extra_rows})
    return model


def pad_tables(path: Path, num_rows: int) -> None:
    """Adds random rows to every table of a file of weights."""
    tables = ("model.shared.weight", "src_embedding.weight", "softmax_bias", "final_logits_bias")
    weights = load_file(path)
    for name in tables & weights.keys():
        flat = weights[name].squeeze(0) if name == "final_logits_bias" else weights[name]
        flat = torch.cat([flat, torch.randn(num_rows, *flat.shape[1:])])
        weights[name] = flat[None] if name == "final_logits_bias" else flat
    save_file(weights, path)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A Marian folder of two SentencePiece models and a list of the pieces of both, with random weights."""
    folder = tmp_path_factory.mktemp("opus-mt-toy")
    models = [trained_model([pair[side] for pair in PAIRS], 180 + 20 * side) for side in (0, 1)]
    for name, model in zip(("source.spm", "target.spm"), models, strict=True):
        (folder / name).write_bytes(model)
    sides = [Tokenizer(model, pieces=[]) for model in models]
    own = [[side._src._processor.id_to_piece(i) for i in range(180 + 20 * k)] for k, side in enumerate(sides)]
    pieces = dict.fromkeys(piece for side in own for piece in side if piece not in ("</s>", "<unk>", "<s>"))
    save_vocabulary(folder, ["</s>", "<unk>", *pieces, ">>fra<<", "<pad>"])
    files.write_json(folder / "tokenizer_config.json", {"source_lang": "de", "target_lang": "en"})
    save_weights(folder)
    return folder


@pytest.fixture
def copy(given, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(given, tmp_path / "copy")


def theirs(folder: Path) -> MarianTokenizer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses")
        return MarianTokenizer.from_pretrained(folder)


def converted(folder: Path, out: Path) -> Path:
    """A kdlab model folder."""
    hashes = {name: files.sha256_file(folder / name) for name in convert_model.FILES if (folder / name).exists()}
    convert_model.run(out, {}, {"sha256": hashes}, {"path": str(folder)})
    return out


def our_logits(model, src_BS, mask_BS, tgt_in_BT) -> torch.Tensor:
    """Logits (B, T, V) position by position."""
    state, head = model.start(src_BS, mask_BS), model.head()
    hidden = [model.step(tgt_in_BT[:, t], state) for t in range(tgt_in_BT.shape[1])]
    return torch.nn.functional.linear(torch.stack(hidden, 1), head.weight_VD, head.bias_V)


def test_ids_and_text_are_those_of_marian_tokenizer(given, tmp_path):
    marian, (tokenizer, rows) = theirs(given), read_marian_tokenizer(given)
    assert rows == list(range(len(marian))) and tokenizer.src_pad_id == tokenizer.tgt_pad_id == marian.pad_token_id
    assert tokenizer.joint and tokenizer.src_vocab_size == tokenizer.tgt_vocab_size == len(marian)
    usual = [line for line in LINES if "<unk>" not in line]
    ids = tokenizer.encode_src(usual)
    assert ids == marian(usual)["input_ids"]
    code = rows.index(json.loads((given / "vocab.json").read_text())[">>fra<<"])
    assert ids[20][0] == ids[21][0] == code and 1 in ids[23] and ids[24] == [0]
    tgt_lines = [tgt for _, tgt in PAIRS[:40]]
    tgt_ids = tokenizer.encode_tgt(tgt_lines)
    assert tgt_ids == marian(text_target=tgt_lines)["input_ids"] and tgt_ids != tokenizer.encode_src(tgt_lines)
    whole = [(row, line) for row, line in zip(tgt_ids, tgt_lines, strict=True) if 1 not in row]
    assert len(whole) > 30 and all(tokenizer.decode_tgt(row) == line for row, line in whole)
    # pieces of the source too: a model may produce any of the list
    known = [row for row in ids if 1 not in row and code not in row]
    wanted = marian.batch_decode(known, skip_special_tokens=True, use_source_tokenizer=False)
    assert [tokenizer.decode_tgt(row) for row in known] == wanted
    # a special token is text, and so is a code that the vocabulary does not have
    spelled, foreign = tokenizer.encode_src(["</s> x", ">>xyz<< x"])
    assert 0 not in spelled[:-1] and len(foreign) > 4

    tokenizer.save(tmp_path)
    again = Tokenizer.open(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.joint
    assert again.encode_src(LINES) == tokenizer.encode_src(LINES) and again.encode_src([]) == []
    save_vocabulary(tmp_path, ["</s>", "<unk>", *reversed(tokenizer.src_pieces[2:]), "<pad>"])
    with pytest.raises(UserError, match="was changed"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        dict(activation_function="relu", scale_embedding=False),
        dict(activation_function="gelu", tie_word_embeddings=False),
        dict(share_encoder_decoder_embeddings=False),
        dict(share_encoder_decoder_embeddings=False, tie_word_embeddings=False, decoder_start_token_id=0),
    ],
    ids=lambda shape: " ".join(map(str, shape)) or "as OPUS-MT",
)
def test_logits_are_those_of_marian_mt_model(copy, shape):
    marian = save_weights(copy, **shape)
    tokenizer, rows = read_marian_tokenizer(copy)
    model = read_marian(copy, rows)
    assert not model.training and model.config.dropout == 0.1 and model.config.max_positions == 96
    pad = tokenizer.src_pad_id
    src = [torch.tensor(ids) for ids in tokenizer.encode_src(LINES[:6])]
    tgt = [torch.tensor([pad, *ids[:-1]]) for ids in tokenizer.encode_tgt([pair[1] for pair in PAIRS[:6]])]
    src_BS, tgt_BT = (torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=pad) for x in (src, tgt))
    mask_BS = torch.arange(src_BS.shape[1]) < torch.tensor([len(ids) for ids in src])[:, None]
    their_tgt_BT = tgt_BT.clone()
    their_tgt_BT[:, 0] = marian.config.decoder_start_token_id
    with torch.no_grad():
        wanted = marian(input_ids=src_BS, attention_mask=mask_BS.long(), decoder_input_ids=their_tgt_BT).logits
        found = our_logits(model, src_BS, mask_BS, tgt_BT)
    assert wanted.std() > 1  # of a size that a tolerance of 1e-5 means something for
    real = torch.arange(tgt_BT.shape[1]) < torch.tensor([len(ids) for ids in tgt])[:, None]
    torch.testing.assert_close(found[real][:, :pad], wanted[real][:, :pad], atol=1e-5, rtol=1e-5)


def test_ids_that_are_not_where_ours_are_move_there_with_their_rows(copy):
    vocabulary = json.loads((copy / "vocab.json").read_text())
    pieces = [piece for piece in vocabulary if piece not in ("</s>", "<pad>", "<unk>")]
    save_vocabulary(copy, [*pieces[:50], "<pad>", *pieces[50:], "</s>", "<unk>"])
    marian, (tokenizer, rows) = save_weights(copy), read_marian_tokenizer(copy)
    ids = tokenizer.encode_src(LINES[:1])
    assert [rows[index] for index in ids[0]] == theirs(copy)(LINES[:1])["input_ids"][0] and ids[0][-1] == 0
    src, tgt = torch.tensor(ids), torch.tensor([[tokenizer.tgt_pad_id, 7, 9]])
    row = torch.tensor(rows)
    with torch.no_grad():
        wanted = marian(input_ids=row[src], decoder_input_ids=row[tgt]).logits[..., row]
        found = our_logits(read_marian(copy, rows), src, torch.ones_like(src).bool(), tgt)
    torch.testing.assert_close(found[..., :-1], wanted[..., :-1], atol=1e-5, rtol=1e-5)


def test_translations_are_those_of_generate(given):
    marian, (tokenizer, rows) = MarianMTModel.from_pretrained(given), read_marian_tokenizer(given)
    model, lines = read_marian(given, rows), LINES[:16]
    batch = theirs(given)(lines, return_tensors="pt", padding=True)
    # Ours leaves forbidden tokens out of the softmax, which Hugging Face does with renormalize_logits.
    settings = dict(max_new_tokens=30, min_new_tokens=1, do_sample=False, renormalize_logits=True)
    for beams in ({}, dict(num_beams=4, early_stopping=True, length_penalty=1.0)):
        made = marian.generate(**batch, **beams, **settings).tolist()
        config = BeamConfig(beams.get("num_beams", 1), 1.0, max_length_ratio=0.0, max_length_extra=30)
        found = [best[0] for best in beam_search(model, tokenizer.encode_src(lines), config)]
        # Of a sentence with finished hypotheses ours returns none that was cut off, even if its score is better.
        pairs = [(ours.ids, ids[1 : ids.index(0)]) for ours, ids in zip(found, made, strict=True) if 0 in ids]
        pairs += [
            (ours.ids, ids[1:]) for ours, ids in zip(found, made, strict=True) if 0 not in ids and not ours.finished
        ]
        assert len(pairs) >= 15 and all(ours == ids for ours, ids in pairs)
        assert len({tuple(ids) for ids, _ in pairs}) > 5 and len({len(ids) for ids, _ in pairs}) > 4


def spoil_config(**changes):
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        files.write_json(folder / "config.json", {**config, **changes})

    return spoil


def spoil_weights(**changes):
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: x for name, x in {**weights, **changes}.items() if x is not None}, folder / "model.safetensors"
        )

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "never does.*revision.*save_pretrained"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK"), "damaged or no safetensors"),
        (lambda f: (f / "vocab.json").unlink(), "vocab.json cannot be read"),
        (lambda f: (f / "target.spm").unlink(), "target.spm cannot be read"),
        (lambda f: save_vocabulary(f, ["</s>", "<unk>"]), "lacks <pad>"),
        (lambda f: (f / "target_vocab.json").write_text("{}"), "a vocabulary for each side"),
        (spoil_config(model_type="bart"), "model_type 'bart', but only 'marian'"),
        (spoil_config(activation_function="gelu_new"), "activation_function 'gelu_new'"),
        (spoil_config(decoder_attention_heads=2), "encoder_attention_heads=4, decoder_attention_heads=2"),
        (spoil_config(encoder_layers=3), r"lacks model.encoder.layers.2.self_attn.q_proj"),
        (spoil_config(encoder_layers=1), r"has model.encoder.layers.1.*does not have"),
        (spoil_config(encoder_ffn_dim=64, decoder_ffn_dim=64), "weights are not those that config.json tells"),
        (spoil_config(decoder_start_token_id=9999), "ids up to 9999"),
        (spoil_weights(**{"model.encoder.embed_positions.weight": torch.randn(96, 32)}), "other positions"),
        (spoil_weights(**{"model.shared.weight": None}), "words have no embeddings"),
    ],
)
def test_what_cannot_be_converted_is_refused(copy, tmp_path, spoil, message):
    spoil(copy)
    with pytest.raises(UserError, match=message):
        converted(copy, tmp_path / "out")


SMALL = [
    *("max_steps=2", "min_labelled=0", "data.train.0.num_lines=60", "data.valid.num_lines=5"),
    *("data.tests.toy.num_lines=5", "student.d_model=16", "student.d_ff=32", "student.num_heads=2"),
    *("trainer.tokens_per_step=300", "trainer.val_every=1", "trainer.log_every=1", "trainer.select=loss"),
    *(
        "decode=greedy",
        "label_decode=greedy",
        "decode.max_length_ratio=0.5",
        "label_decode.max_length_ratio=0.5",
    ),
]
WORD_KD = ["recipe=word_kd", "objective=word_kd", "baseline=false"]
ADOPT = ["teacher=marian", "data.tokenizer.path=teacher"]


@pytest.fixture(scope="module")
def kd(given, tmp_path_factory):
    """Steps of a small word-level distillation from the Marian folder, its corpus and teacher already made."""
    home = tmp_path_factory.mktemp("kd")
    paths = [f"paths.store={home}/store", f"teacher.path={given}"]
    cfg = compose([*SMALL, *WORD_KD, *ADOPT, *paths, "weight_nll=0"]).cfg
    steps = {step.name: step for step in get_method(cfg.recipe._target_)(cfg)}
    for step in (steps["teacher"], steps["corpus"]):
        step.run(home / step.name, {"teacher": home / "teacher"}, step.params, step.local)
    return steps["student"], home / "corpus", home / "teacher"


def trained(out: Path, kd, teacher: Path) -> list[str]:
    """The metrics of two steps with another teacher."""
    student, corpus, _ = kd
    student.run(out, {"corpus": corpus, "teacher": teacher}, student.params, student.local)
    rows = (out / "metrics.csv").read_text().splitlines()
    return [row for row in rows if row.split(",")[1].partition("/")[2] in ("loss", "grad_norm", "kd", "nll")]


def test_t12_rows_beyond_the_vocabulary_change_nothing(given, copy, kd, tmp_path):
    """Neither in a Marian model nor in a kdlab folder: they are left out of embeddings and softmax."""
    save_weights(copy, extra_rows=7)
    padded = converted(copy, tmp_path / "converted")
    for name in ("weights.safetensors", "tokenizer/vocab.json"):
        assert (padded / name).read_bytes() == (kd[2] / name).read_bytes()
    shutil.copytree(kd[2], tmp_path / "padded")
    pad_tables(tmp_path / "padded" / "weights.safetensors", 7)
    config = json.loads((kd[2] / "config.json").read_text())
    for side in ("src_vocab_size", "tgt_vocab_size"):
        config["architecture"][side] += 7
    files.write_json(tmp_path / "padded" / "config.json", config)
    assert len(load_file(tmp_path / "padded" / "weights.safetensors")["softmax_bias"]) == len(theirs(given)) + 7
    plain = trained(tmp_path / "plain", kd, kd[2])
    assert len(plain) > 6 and trained(tmp_path / "student", kd, tmp_path / "padded") == plain
    assert trained(tmp_path / "other", kd, other_teacher(kd[2], tmp_path / "another")) != plain  # the loss looks at it


def other_teacher(folder: Path, to: Path, pieces: list[str] | None = None) -> Path:
    """A kdlab folder with the same architecture and other weights, or another vocabulary of the same size."""
    shutil.copytree(folder, to)
    weights = load_file(to / "weights.safetensors")
    save_file({name: value * 1.1 for name, value in weights.items()}, to / "weights.safetensors")
    if pieces is not None:
        old = Tokenizer.open(folder / "tokenizer")
        shutil.rmtree(to / "tokenizer")
        Tokenizer(old._models[0], old._models[1], pieces).save(to / "tokenizer")
    return to


def test_t12_a_shuffled_vocabulary_is_refused_with_the_way_out(kd, tmp_path):
    pieces = Tokenizer.open(kd[2] / "tokenizer").src_pieces
    teacher = other_teacher(kd[2], tmp_path / "teacher", pieces=[*pieces[:2], *reversed(pieces[2:])])
    message = r"pieces in another order \(from id 2 on\).*recipe=seq_kd.*data.tokenizer.path=teacher"
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "out", kd, teacher)


def test_t6_with_padding_as_start_token_every_target_token_counts(kd):
    """A mask made of decoder inputs would lose the first token of each line, whose input is the padding id."""
    corpus = PreparedCorpus.open(kd[1])
    pads = dict(src_pad_id=corpus.tokenizer.src_pad_id, tgt_pad_id=corpus.tokenizer.tgt_pad_id)
    (batch,) = evaluation_batches(corpus.valid, microbatch_tokens=10_000, **pads)
    targets = batch.targets
    assert (targets.tgt_in_RT[:, 0] == pads["tgt_pad_id"]).all() and targets.mask_RT[:, 0].all()
    assert targets.mask_RT.sum() == corpus.valid.tgt_len.sum() == (targets.tgt_out_RT != pads["tgt_pad_id"]).sum()
    assert targets.tgt_in_RT.ne(pads["tgt_pad_id"]).sum() != targets.mask_RT.sum()


def test_hybrid_with_a_marian_teacher_from_the_hub(given, tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        assert not [pattern for pattern in allow_patterns if pattern.endswith(".bin")]
        return str(given)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    hub = ["teacher.path=Helsinki-NLP/opus-mt-de-en", f"teacher.revision={'a1' * 20}"]
    paths = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    assert run.main([*SMALL, *ADOPT, *hub, *paths]) == 0
    assert asked == [("Helsinki-NLP/opus-mt-de-en", "a1" * 20)]
    assert "toy BLEU" in capsys.readouterr().out
    (record,) = (files.read_json(path) for path in tmp_path.glob("runs/*/*/run.json"))
    found = {name: tmp_path / "store" / step["stage"] / step["key"] for name, step in record["steps"].items()}
    size = len(theirs(given))
    for step in ("teacher", "student", "baseline"):
        config = files.read_json(found[step] / "config.json")
        assert {config["architecture"][f"{side}_vocab_size"] for side in ("src", "tgt")} == {size}
        assert config["card"]["tokenizer"] == PreparedCorpus.open(found["corpus"]).tokenizer.fingerprint
    assert load_model(found["student"]).config.tie == "all"
    assert "KL(teacher || student)" in (found["student"] / "objective.md").read_text()


def test_what_the_hub_cannot_give_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be fetched from the hub .*write teacher.path=<their folder>"):
        convert_model.run(tmp_path, {}, {"hub": "no/such", "revision": "0" * 40}, {"path": "no/such"})
