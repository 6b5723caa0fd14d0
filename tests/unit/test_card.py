"""The objective card says every number of what is trained."""

from kdlab.objectives.card import card
from kdlab.objectives.hidden_cosine import HiddenCosine
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.word_kd import WordKD

STUDENT = {"tgt_vocab_size": 1200, "dropout": 0.1, "attention_dropout": 0.0, "d_model": 64}
STUDENT |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
TEACHER = {**STUDENT, "num_encoder_layers": 6, "num_decoder_layers": 6, "d_model": 96}


def text(objective: Objective) -> str:
    return card(
        objective, STUDENT, TEACHER, precision="bf16", teacher_precision="int8", teacher_objective="-log p(y), label\n"
    )


def test_t11_t17_the_card_says_coefficients_rows_divisors_and_both_smoothings():
    terms = {
        "gold": WeightedTerm(0.5, "gold", "tgt_token", Nll(0.1), mixed=True),
        "pseudo": WeightedTerm(1.0, "pseudo", "tgt_token", Nll(), mixed=True),
        "kd": WeightedTerm(2.0, "all", "sentence", WordKD(5.0)),
        "off": WeightedTerm(0.0, "all", "tgt_token", WordKD(1.0)),
    }
    shown = text(Objective(terms, mix=0.25, mix_by="weights"))
    assert "label smoothing 0.1" in shown and "25 * KL(teacher || student), both at temperature 5" in shown
    assert "- coefficient: 0.125 (mix 0.25, as weights)" in shown and "- coefficient: 0.75 (mix" in shown
    assert "- divided by: sentences of all rows\n" in shown
    assert "- divided by: target tokens of gold rows\n" in shown
    assert "Of weight 0, and not computed: off." in shown
    assert "Softmax over 1,199 tokens" in shown and "6+6 layers of width 96, int8, frozen" in shown
    assert "The teacher was trained with: -log p(y), label" in shown and "Dropout of the student: 0.1" in shown
    sampled = text(Objective(terms, mix=0.25))
    assert "- coefficient: 0.5\n" in sampled and "of all rows (both sides of the mixture)" in sampled


def test_t19_t22_the_card_names_the_tensors_that_are_matched():
    terms = {"cos": WeightedTerm(1.0, "gold", "src_token", HiddenCosine("encoder", "spread", True))}
    shown = text(Objective(terms))
    assert "encoder.0 - encoder.2, encoder.1 - encoder.5" in shown
    assert "every source position" in shown and "a learned matrix for each: 64 to 96" in shown
