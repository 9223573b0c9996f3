"""The light vocabulary against seqio's: the same ids, both ways."""

import pytest

from prompt_jax.data import vocabulary
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

TEXTS = [
    "the film was very good and the ending bright.",
    "  a   dull plot ",
    "",
    "never seen: żółw, 映画 \N{SNOWMAN}",
    "watch <extra_id_0> again <extra_id_99> .",
]


@pytest.fixture(params=["byte", "sentencepiece"])
def words(request, spm_path):
    return vocabulary.load_vocabulary("byte" if request.param == "byte" else spm_path)


def test_ids_are_seqios(words):
    other = words.seqio()
    assert words.size == other.vocab_size
    assert words.eos_id == other.eos_id == 1 and words.unk_id == other.unk_id
    for text in TEXTS:
        ids = words.encode(text)
        assert ids == list(other.encode(text)) == other.encode_tf(text).numpy().tolist()
        assert words.decode(ids) == other.decode(ids)
    for number in range(3, words.size):
        assert words.decode([number]) == other.decode([number])


def test_sentinels_stand_at_the_top(spm_path):
    words = vocabulary.load_vocabulary(spm_path)
    top = words.size - 1
    assert words.encode("<extra_id_0> film <extra_id_1>")[::2][0] == top
    assert words.encode("<extra_id_1>") == [top - 1]
    assert words.encode("<extra_id_99>") == [top - 99]


def test_sentinels_are_added_once(spm_path, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(open(spm_path, "rb").read())
    plain = len(model.pieces)
    for number in reversed(range(100)):
        model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=4)
    path = tmp_path / "with.model"
    path.write_bytes(model.SerializeToString())
    has, lacks = vocabulary.load_vocabulary(str(path)), vocabulary.load_vocabulary(spm_path)
    assert has.size == lacks.size == plain + 100 == has.seqio().vocab_size
    assert has.pieces == lacks.pieces == plain
    assert has.fingerprint != lacks.fingerprint


def test_decoding_stops_at_eos_and_leaves_slots_out(words):
    ids = words.encode("good film")
    assert words.decode([SLOT0, *ids[:2], SLOT0 + 7, *ids[2:], 1, *ids]) == words.decode(ids)
    assert "good film" in words.decode(ids)


def test_byte_ids_are_bytes_plus_three():
    words = vocabulary.load_vocabulary("byte")
    assert words.encode("aé") == [97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert words.decode([0, 100, 2, 101]) == "ab"


def test_a_folder_holds_spiece_model(spm_path, tmp_path):
    (tmp_path / "spiece.model").write_bytes(open(spm_path, "rb").read())
    words = vocabulary.load_vocabulary(str(tmp_path))
    assert words.fingerprint == vocabulary.load_vocabulary(spm_path).fingerprint


def test_table_must_hold_every_id(words):
    vocabulary.check_fits(words, words.size)
    with pytest.raises(UserError, match=str(words.size)):
        vocabulary.check_fits(words, words.size - 1)
    vocabulary.check_fits(words, words.size + 125)  # ByT5's 384 rows for 259 bytes
    with pytest.raises(UserError, match="does not fit an embedding table"):
        vocabulary.check_fits(words, words.size + 256)


def test_no_vocabulary_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        vocabulary.load_vocabulary(str(tmp_path / "none.model"))
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        vocabulary.load_vocabulary(str(broken))


def test_pieces_are_spelled(spm_path):
    words = vocabulary.load_vocabulary(spm_path)
    assert [words.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert "".join(map(words.piece, words.encode("good film"))) == "▁good▁film"
    assert words.piece(words.size - 1) == "▁<extra_id_0>"
    byte = vocabulary.load_vocabulary("byte")
    assert [byte.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    spelled = [byte.piece(i) for i in byte.encode("a b\nż")]
    assert spelled == ["a", " ", "b", "<0x0A>", "<0xC5>", "<0xBC>"]
