"""Hugging Face models of several kinds as teachers that make labels: what they say, and what must be refused."""

import json
import shutil
import warnings
from collections import Counter
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from kdlab import files, run
from kdlab.data.hypotheses import read_hypotheses
from kdlab.data.prepared import PreparedCorpus
from kdlab.data.toy import generate
from kdlab.decoding.beam import BeamConfig
from kdlab.decoding.engine import Engine, Sources
from kdlab.decoding.engines import open_engine
from kdlab.decoding.huggingface import HuggingFaceEngine
from kdlab.decoding.huggingface_folder import prompt_ids
from kdlab.decoding.translator import Translator
from kdlab.errors import UserError
from kdlab.stages import convert_model, fetch_huggingface

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        M2M100Config,
        M2M100ForConditionalGeneration,
        M2M100Tokenizer,
        MarianConfig,
        MarianMTModel,
        MBart50Tokenizer,
        MBartTokenizer,
        NllbTokenizer,
        T5Config,
        T5ForConditionalGeneration,
    )

PAIRS = list(generate("train", 400, 1))
LINES = [src for src, _ in PAIRS if len(src) < 60][:24]
BEAM = BeamConfig(4, 1.0, n_best=4, max_length_ratio=1.0, max_length_extra=6)
NONE = {"src_code": None, "tgt_code": None, "prefix": None}
LANGUAGES = {"src_code": "de", "tgt_code": "en", "prefix": None}
MARIAN_SHAPE = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48)
HEADS = dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=160)


def sentencepiece(lines: list[str], **settings) -> tuple[bytes, list[str]]:
    """A small model of these lines, and its pieces."""
    writer = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=writer, vocab_size=180, num_threads=1, minloglevel=2, **settings
    )
    processor = SentencePieceProcessor(model_proto=writer.getvalue())
    return writer.getvalue(), [processor.id_to_piece(index) for index in range(180)]


def save_random(model, folder: Path, *, eos: int, factor: float = 3.0) -> None:
    """Random weights whose distribution is not flat, and which end a hypothesis at times."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "embed_positions" not in name:
                weight.normal_(std=0.3 if weight.dim() > 1 else 0.1)
                if "norm" in name and name.endswith("weight"):
                    weight.add_(1.0)
        model.get_output_embeddings().weight[eos] *= factor
    # What must not change a search of ours, and what must.
    model.generation_config.update(num_beams=7, length_penalty=3.0, no_repeat_ngram_size=2, do_sample=True, top_k=3)
    model.generation_config.update(repetition_penalty=5.0, min_length=9, max_length=11)
    model.save_pretrained(folder)


def make_marian(folder: Path) -> Path:
    pair = [sentencepiece([pair[side] for pair in PAIRS]) for side in (0, 1)]
    for name, (model, _) in zip(("source.spm", "target.spm"), pair, strict=True):
        (folder / name).write_bytes(model)
    own = dict.fromkeys(piece for _, pieces in pair for piece in pieces if piece not in ("</s>", "<unk>", "<s>"))
    vocabulary = {piece: index for index, piece in enumerate(["</s>", "<unk>", *own, ">>fra<<", "<pad>"])}
    files.write_json(folder / "vocab.json", vocabulary)
    files.write_json(folder / "tokenizer_config.json", {"source_lang": "de", "target_lang": "en"})
    pad = vocabulary["<pad>"]
    ids = dict(pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0)
    shape = dict(scale_embedding=True, activation_function="swish", vocab_size=len(vocabulary))
    model = MarianMTModel(MarianConfig(**MARIAN_SHAPE, **HEADS, **ids, **shape))
    model.generation_config.bad_words_ids = [[pad]]
    save_random(model, folder, eos=0)
    return folder


def make_m2m100(folder: Path) -> Path:
    model, pieces = sentencepiece([line for pair in PAIRS for line in pair])
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    own = [piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *own]
    files.write_json(folder / "vocab.json", {piece: index for index, piece in enumerate(pieces)})
    M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")).save_pretrained(folder)
    config = M2M100Config(vocab_size=len(pieces) + 108, **MARIAN_SHAPE, **HEADS)  # 100 languages, 8 rows for nothing
    save_random(M2M100ForConditionalGeneration(config), folder, eos=2, factor=8.0)
    return folder


def make_t5(folder: Path) -> Path:
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(sentencepiece([line for pair in PAIRS for line in pair], **ids)[0])
    files.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"})
    shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    save_random(T5ForConditionalGeneration(T5Config(vocab_size=320, **shape)), folder, eos=1)
    return folder


KINDS = {"marian": (make_marian, NONE), "m2m100": (make_m2m100, LANGUAGES), "t5": (make_t5, {**NONE, "prefix": "de: "})}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, as save_pretrained leaves it."""
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, (make, _) in KINDS.items()}


def fetched(folder: Path, out: Path, card: dict) -> Path:
    """What the stage makes of a folder."""
    out.mkdir()
    hashes = {place.name: files.sha256_file(place) for place in fetch_huggingface.model_files(folder)}
    fetch_huggingface.run(out, {}, {"sha256": hashes, **card}, {"path": str(folder)})
    return out


@pytest.fixture(scope="module")
def stored(given, tmp_path_factory) -> dict[str, Path]:
    """The teachers as artefacts."""
    home = tmp_path_factory.mktemp("stored")
    return {kind: fetched(given[kind], home / kind, card) for kind, (_, card) in KINDS.items()}


def engine(folder: Path, config: BeamConfig = BEAM, **settings) -> HuggingFaceEngine:
    return HuggingFaceEngine.open(folder, config, **{"precision": "fp32", "device": "cpu", **settings})


def decoded(opened: Engine, lines: list[str], first: int = 0):
    (found,) = opened.decode([Sources(list(range(first, first + len(lines))), lines)])
    return found


@pytest.mark.parametrize("config", [BeamConfig(1, 1.0, 1, 0.0, 30), BEAM, BeamConfig(5, 0.6, 2, 0.5, 2)], ids=str)
def test_a_marian_model_says_what_it_says_as_one_of_ours(given, stored, tmp_path, config):
    """Through generate and through our own search, each sentence with a limit of its own, cut off or not."""
    hashes = {name: files.sha256_file(given["marian"] / name) for name in convert_model.FILES if name != "x"}
    convert_model.run(tmp_path / "ours", {}, {"sha256": hashes}, {"path": str(given["marian"])})
    translator = Translator.open(tmp_path / "ours", precision="fp32", device="cpu")
    ours = translator.translate(LINES, config, batch_tokens=10_000)
    theirs = decoded(engine(stored["marian"], config), LINES)
    assert [[x.text for x in row] for row in theirs] == [[x.text for x in row] for row in ours]
    pairs = [pair for rows in zip(theirs, ours, strict=True) for pair in zip(*rows, strict=True)]
    assert all((x.num_tokens, x.finished) == (y.num_tokens, y.finished) and x.ids is None for x, y in pairs)
    for name in ("log_prob", "score"):
        assert [getattr(x, name) for x, _ in pairs] == pytest.approx([getattr(y, name) for _, y in pairs], abs=1e-4)
    assert len({x.text for x, _ in pairs}) > 10 and {x.finished for x, _ in pairs} == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_has_the_same_translations_in_any_batch(stored, kind):
    opened = engine(stored[kind])
    together = decoded(opened, LINES)
    assert len({row[0].text for row in together}) > 5 and len({x.num_tokens for row in together for x in row}) > 4
    for at in (0, 7, 11, 20):
        (alone,) = decoded(opened, [LINES[at]])
        assert [x.text for x in alone] == [x.text for x in together[at]]
        assert [x.log_prob for x in alone] == pytest.approx([x.log_prob for x in together[at]], abs=1e-4)
    (blank,) = decoded(opened, ["  "])
    assert [(x.text, x.num_tokens, x.finished) for x in blank] == [("", 1, True)]
    if kind != "t5":  # which has no positions that could run out
        assert decoded(opened, ["Hund " * 200, LINES[0]])[0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_model_position_by_position(stored, kind):
    """Over what follows start and language, EOS counted; padding and rows of no token have no share."""
    opened = engine(stored[kind])
    model, tokenizer = opened.model, opened.tokenizer
    forbidden = [index for index in range(model.config.vocab_size) if index > max(tokenizer.get_vocab().values())]
    forbidden.append(tokenizer.pad_token_id)
    eos = tokenizer.eos_token_id
    texts = {}
    with torch.no_grad():
        made = model.generate(
            **tokenizer([opened.prefix + line for line in LINES[:12]], padding=True, return_tensors="pt"),
            decoder_input_ids=torch.tensor([opened.prompt] * 12),
            do_sample=False, num_beams=1, max_new_tokens=12, suppress_tokens=forbidden, min_new_tokens=1,
            **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
        )  # fmt: skip
        for line, ids in zip(LINES, made[:, len(opened.prompt) :].tolist(), strict=False):
            ids = ids[: ids.index(eos) + 1] if eos in ids else ids
            total = 0.0
            for at, token in enumerate(ids):
                source = tokenizer([opened.prefix + line], return_tensors="pt")
                logits = model(**source, decoder_input_ids=torch.tensor([opened.prompt + ids[:at]])).logits[0, -1]
                logits[forbidden + ([eos] if at == 0 else [])] = -torch.inf
                total += logits.log_softmax(-1)[token].item()
            texts[line] = (tokenizer.decode(ids, skip_special_tokens=True), total, len(ids), eos in ids)
    greedy = BeamConfig(1, 0.5, 1, 0.0, 12)
    found = {line: row[0] for line, row in zip(LINES, decoded(engine(stored[kind], greedy), LINES[:12]), strict=False)}
    for line, (text, total, num_tokens, finished) in texts.items():
        assert (found[line].text, found[line].num_tokens, found[line].finished) == (text, num_tokens, finished)
        assert found[line].log_prob == pytest.approx(total, abs=1e-4)
        assert found[line].score == pytest.approx(total / num_tokens**0.5, abs=1e-4)


def test_samples_of_a_marian_model_are_those_of_ours(given, stored, tmp_path):
    """Drawn with the same noise, so that they depend on row and seed alone."""
    convert_model.run(tmp_path / "ours", {}, {}, {"path": str(given["marian"])})
    limits = {"length_penalty": 1.0, "max_length_ratio": 1.0, "max_length_extra": 4, "precision": "fp32", "n_best": 3}
    for sampling in ({"seed": 5}, {"seed": 5, "temperature": 0.7, "top_k": 20, "top_p": 0.9}):
        found = []
        for folder in (tmp_path / "ours", stored["marian"]):
            settings = {**limits, "sampling": sampling}
            opened = open_engine([folder], settings, device="cpu", threads=1, scratch=tmp_path)
            found.append(decoded(opened, LINES[:12], first=100))
        ours, theirs = found
        plain = [[x.text.replace("\u2047", "").split() for x in row] for row in ours]  # theirs leaves <unk> out
        assert [[x.text.split() for x in row] for row in theirs] == plain
        scores = [[x.log_prob for row in rows for x in row] for rows in found]
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)
        assert len({x.text for row in ours for x in row}) > 20
        (alone,) = decoded(opened, [LINES[3]], first=103)
        assert [x.text for x in alone] == [x.text for x in theirs[3]]
        assert [x.text for x in decoded(opened, [LINES[3]], first=3)[0]] != [x.text for x in alone]


def test_sources_and_targets_begin_with_what_the_model_wants(stored):
    """Languages, prefix, start token; a special token in a line is text."""
    opened = engine(stored["m2m100"])
    german, english = (opened.tokenizer.lang_code_to_id[code] for code in ("de", "en"))
    (ids,) = opened.encode(["Der Hund </s> schläft"])
    assert ids[0] == german and ids.index(2) == len(ids) - 1 and opened.prompt == [2, english]
    opened = engine(stored["t5"])
    assert opened.encode([LINES[0]]) == opened.tokenizer(["de: " + LINES[0]])["input_ids"] and opened.prompt == [0]
    opened = engine(stored["marian"])
    assert opened.prompt == [opened.tokenizer.pad_token_id] and opened.encode([">>fra<< x"])[0][0] > 250


def test_languages_are_found_where_each_tokenizer_keeps_them():
    """NLLB's are special tokens behind a start token; mBART begins with the language, the later one has both."""
    card = {"src_code": "deu_Latn", "tgt_code": "eng_Latn"}
    nllb = NllbTokenizer()
    assert prompt_ids(nllb, card, 2, None) == [2, nllb.convert_tokens_to_ids("eng_Latn")]
    assert nllb.convert_ids_to_tokens(nllb("x")["input_ids"])[0] == "deu_Latn"
    for wrong, message in (("<mask>", "write one of ace_Arab, ace_Latn"), ("eng_Lat", "did you mean 'eng_Latn'")):
        with pytest.raises(UserError, match=message):
            prompt_ids(nllb, {**card, "tgt_code": wrong}, 2, None)
    card = {"src_code": "de_DE", "tgt_code": "ro_RO"}
    first, later = MBartTokenizer(), MBart50Tokenizer()
    german, romanian = (first.convert_tokens_to_ids(code) for code in ("de_DE", "ro_RO"))
    assert prompt_ids(first, card, german, None) == [romanian]
    assert prompt_ids(later, card, 2, german) == [2, later.convert_tokens_to_ids("ro_RO")]


def test_what_the_models_own_settings_force_is_kept(given, stored, tmp_path):
    """Also where an old folder has them in config.json; its beam size, penalties and the like are not (save_random)."""
    usual = engine(stored["t5"], BeamConfig(1, 1.0, 1, 0.0, 8))
    said = [ids for line in LINES for ids in usual.tokenizer([decoded(usual, [line])[0][0].text])["input_ids"]]
    counts = Counter(token for ids in said for token in ids if token > 3)
    (often, _), (other, _) = counts.most_common(2)
    folder = shutil.copytree(given["t5"], tmp_path / "copy")
    forced = {"bad_words_ids": [[often], [other, other]], "forced_bos_token_id": other, "num_beams": 3}
    (folder / "generation_config.json").unlink()
    spoil_config(**forced)(folder)
    opened = engine(fetched(folder, tmp_path / "out", KINDS["t5"][1]), BeamConfig(1, 1.0, 1, 0.0, 8))
    assert opened.prompt == [0, other] and opened.forbidden_V[often] and not opened.forbidden_V[other]
    assert opened.forbidden_V.sum() == 2 + 320 - 280  # with padding, and the rows that are no token
    found = decoded(opened, LINES)
    word, twice = opened.tokenizer.convert_ids_to_tokens([often, other])
    assert not any(word.strip("\u2581") in row[0].text.split() for row in found)
    assert {row[0].text for row in found} != {row[0].text for row in decoded(usual, LINES)}
    assert not any(2 * twice.strip("\u2581") in row[0].text for row in found)


def spoil_config(**changes):
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        files.write_json(folder / "config.json", {**config, **changes})

    return spoil


def without(name: str):
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(
            save({key: value for key, value in load_file(folder / "model.safetensors").items() if key != name})
        )

    return spoil


@pytest.mark.parametrize(
    "kind, card, spoil, message",
    [
        ("m2m100", {"src_code": "de", "tgt_code": "deu"}, None, "tgt_code=deu is no language.*did you mean 'de'"),
        ("m2m100", {"src_code": "xx_YY", "tgt_code": "en"}, None, "src_code=xx_YY is no language.*write one of af, am"),
        ("m2m100", {}, None, "src_code=null is no language of this teacher"),
        ("marian", {"src_code": "de", "tgt_code": "en"}, None, "mean nothing to MarianTokenizer.*leave them out"),
        ("t5", {}, lambda f: (f / "spiece.model").unlink(), "tokenizer of the Hugging Face model .*cannot be read"),
        ("t5", {}, lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no weights in safetensors"),
        ("t5", {}, lambda f: (f / "model.safetensors").write_bytes(b"PK"), "cannot be read as a Hugging Face sequence"),
        ("t5", {}, without("encoder.final_layer_norm.weight"), "lack encoder.final_layer_norm.weight, which transf"),
        ("t5", {}, spoil_config(model_type="gpt2", is_encoder_decoder=False), "cannot be read as a Hugging Face seq"),
        ("t5", {}, spoil_config(model_type="mine", auto_map={"AutoModelForSeq2SeqLM": "mine.Mine"}), "cannot be read"),
    ],
)
def test_what_cannot_make_labels_is_refused(given, tmp_path, kind, card, spoil, message):
    folder = shutil.copytree(given[kind], tmp_path / "copy")
    (folder / "mine.py").write_text("raise SystemExit('code that came with a model was run')")
    if spoil is not None:
        spoil(folder)
    with pytest.raises(UserError, match=message):
        fetched(folder, tmp_path / "out", NONE | card)


def test_a_folder_that_changes_and_a_precision_that_it_lacks_are_refused(given, stored, tmp_path):
    hashes = {place.name: "0" * 64 for place in fetch_huggingface.model_files(given["t5"])}
    with pytest.raises(UserError, match="was changed while it was copied"):
        fetch_huggingface.run(tmp_path, {}, {"sha256": hashes, **NONE}, {"path": str(given["t5"])})
    settings = {"beam_size": 1, "length_penalty": 1.0, "max_length_ratio": 1.0, "max_length_extra": 1}
    for folders, changes, message in (
        (["t5"], {"precision": "int8"}, "precision is 'int8', but a Hugging Face teacher has no such layers"),
        (["t5"], {"precision": "fp32", "engine": "ctranslate2"}, "only models of ours can be combined or exported"),
        (["t5", "marian"], {"precision": "fp32"}, "only models of ours can be combined or exported"),
    ):
        with pytest.raises(UserError, match=message):
            places = [stored[kind] for kind in folders]
            open_engine(places, settings | changes, device="cpu", threads=1, scratch=tmp_path)
    opened = engine(stored["t5"], precision="bf16")
    assert next(opened.model.parameters()).dtype == torch.bfloat16 and opened.num_parameters > 10_000
    rows = zip(decoded(opened, LINES), decoded(engine(stored["t5"]), LINES), strict=True)
    assert sum(low[0].text == full[0].text for low, full in rows) > len(LINES) / 2


SMALL = [
    *("max_steps=2", "min_labelled=0", "data.train.0.num_lines=40", "data.valid.num_lines=5", "baseline=false"),
    *("data.tests.toy.num_lines=5", "student.d_model=16", "student.d_ff=32", "student.num_heads=2", "decode=greedy"),
    *("trainer.tokens_per_step=300", "trainer.val_every=1", "trainer.log_every=1", "trainer.select=loss"),
    *("recipe=seq_kd", "objective=seq_kd", "mix=0", "vocab_size=200", "label_decode=greedy"),
    *("decode.max_length_ratio=0.5", "label_decode.max_length_ratio=0.5"),
]


@pytest.mark.parametrize("kind", ["m2m100", "t5"])
def test_a_student_learns_from_the_labels_of_a_hugging_face_teacher(given, stored, tmp_path, monkeypatch, kind):
    """From the hub at a commit, and from a folder."""
    asked = []

    def fetch(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        return str(given[kind])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    place = [f"teacher.path={given[kind]}", "teacher.prefix='de: '"]
    if kind == "m2m100":
        place = ["teacher.path=facebook/m2m100_418M", f"teacher.revision={'a1' * 20}"]
        place += ["teacher.src_code=de", "teacher.tgt_code=en"]
    paths = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    assert run.main([*SMALL, "teacher=huggingface", *place, *paths]) == 0
    assert asked == ([("facebook/m2m100_418M", "a1" * 20)] if kind == "m2m100" else [])
    (record,) = (files.read_json(path) for path in tmp_path.glob("runs/*/*/run.json"))
    found = {name: tmp_path / "store" / step["stage"] / step["key"] for name, step in record["steps"].items()}
    corpus = PreparedCorpus.open(found["corpus"]).train
    opened = engine(stored[kind], BeamConfig(1, 1.0, 1, 0.5, 10))
    expected = dict(zip(corpus.row_id.tolist(), corpus.src_text(range(len(corpus.row_id))), strict=True))
    rows = [row for rows in read_hypotheses(found["hypotheses"]) for row in rows]
    assert len(rows) == len(expected) > 20
    for row in rows[::5]:
        ((candidate,),) = decoded(opened, [expected[row["row_id"]]])
        assert row["text"] == [candidate.text] and row["num_tokens"] == [candidate.num_tokens]
    scores = files.read_json(found["evaluate_teacher"] / "scores.json")["toy"]
    assert scores["parameters"] == opened.num_parameters and scores["sentences"] == 5
    said = (found["evaluate_teacher"] / "toy.hyp.txt").read_text().splitlines()
    sources = PreparedCorpus.open(found["corpus"]).test("toy").src
    assert said == [row[0].text for row in decoded(engine(stored[kind], BeamConfig(1, 1.0, 1, 0.5, 10)), sources)]
