"""The backbone's vocabulary: text <-> token ids, without TensorFlow.

`vocabulary.seqio()` gives the seqio object with identical ids, for building caches.
"""

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

EXTRA_IDS = 100
PAD, EOS, UNK = 0, 1, 2
_BYTE_OFFSET, _BYTES = 3, 256
_PADDED = 256  # rows of an embedding table without an id are fewer
_SPECIAL = ("<pad>", "</s>", "<unk>")


class ByteVocabulary:
    """ByT5's bytes: id = byte + 3 (Xue et al. 2022, section 3.1). 259 ids."""

    size, eos_id, pad_id, unk_id = _BYTE_OFFSET + _BYTES, EOS, PAD, UNK
    pieces = size
    fingerprint = hashlib.sha256(b"byte").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without EOS."""
        return [byte + _BYTE_OFFSET for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids up to the first EOS; slots, padding and special ids are left out."""
        shown = (i - _BYTE_OFFSET for i in _until_eos(ids))
        return bytes(i for i in shown if 0 <= i < _BYTES).decode("utf-8", errors="ignore")

    def piece(self, token: int) -> str:
        """How one id is spelled: an ASCII character, `<0xE2>` for other bytes, or `</s>`."""
        if token < _BYTE_OFFSET:
            return _SPECIAL[token]
        byte = token - _BYTE_OFFSET
        return chr(byte) if 0x20 <= byte < 0x7F else f"<0x{byte:02X}>"

    def seqio(self) -> Any:
        """The seqio vocabulary with the same ids."""
        import seqio

        return seqio.ByteVocabulary()


class SentencePiece:
    """A sentencepiece model, with the 100 sentinels `<extra_id_99>` ... `<extra_id_0>` at the top.

    size: number of ids, sentinels included. pieces: without them. fingerprint: of the model file
    and the sentinels.
    """

    eos_id, pad_id, unk_id = EOS, PAD, UNK

    def __init__(self, path: str):
        """Reads a model file.

        Args:
            path: a `.model` file of sentencepiece.

        Raises:
            UserError: no such model, or its pad and EOS are not 0 and 1.
        """
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        self.path = path
        try:
            serialized = epath.Path(path).read_bytes()
            model = sentencepiece_model_pb2.ModelProto.FromString(serialized)
        except Exception as error:  # protobuf's DecodeError has moved between its versions
            raise UserError(f"vocabulary {path!r} is not a sentencepiece model: {error}") from error
        has_sentinels = any("<extra_id_0>" in piece.piece for piece in reversed(model.pieces))
        self._extra_ids = 0 if has_sentinels else EXTRA_IDS
        for number in reversed(range(self._extra_ids)):
            kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
            model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=kind)
        self._processor = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model.SerializeToString())
        ids = (self._processor.pad_id(), self._processor.eos_id())
        if ids != (PAD, EOS):
            raise UserError(f"vocabulary {path!r} has pad, EOS = {ids}; T5's are (0, 1)")
        self.size = self._processor.GetPieceSize()
        self.pieces = sum("<extra_id_" not in piece.piece for piece in model.pieces)
        self.fingerprint = hashlib.sha256(serialized + f"+{self._extra_ids}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without EOS."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids up to the first EOS; slots are left out, unknown ids shown as UNK."""
        return self._processor.DecodeIds([i if i < self.size else UNK for i in _until_eos(ids)])

    def piece(self, token: int) -> str:
        """How the model spells one id, e.g. `▁good`, `ing`, `</s>`, `▁<extra_id_0>`."""
        return self._processor.IdToPiece(token)

    def seqio(self) -> Any:
        """The seqio vocabulary with the same ids."""
        import seqio

        return seqio.SentencePieceVocabulary(self.path, extra_ids=self._extra_ids)


Vocabulary = ByteVocabulary | SentencePiece


@functools.lru_cache(maxsize=8)
def load_vocabulary(path: str) -> Vocabulary:
    """Opens a vocabulary.

    Args:
        path: a sentencepiece model, a backbone folder that holds `spiece.model`, or `byte`.

    Returns:
        An object with `encode`, `decode`, `piece`, `size`, `eos_id`, `fingerprint`, `seqio()`.

    Raises:
        UserError: nothing readable there.
    """
    path = str(path)
    if path == "byte":
        return ByteVocabulary()
    file = epath.Path(path)
    if file.is_dir():
        file = file / "spiece.model"
    if not file.is_file():
        raise UserError(
            f"vocabulary {str(file)!r} does not exist; give a .model file or 'byte' "
            "(--gin.Backbone.vocabulary)"
        )
    return SentencePiece(str(file))


def check_fits(vocabulary: Vocabulary, rows: int) -> None:
    """Refuses a vocabulary that is not the embedding table's.

    T5's tables are padded to a multiple of 128 rows: more than that is another vocabulary.

    Args:
        vocabulary: of the data.
        rows: V of the backbone.

    Raises:
        UserError: more ids than rows, or `_PADDED` rows or more without an id.
    """
    if not 0 <= rows - vocabulary.size < _PADDED:
        raise UserError(
            f"vocabulary of {vocabulary.size} ids does not fit an embedding table of {rows} rows; "
            "give the backbone's own vocabulary"
        )


def _until_eos(ids: Iterable[int | np.integer]) -> list[int]:
    """Ids without slots, cut at the first EOS."""
    kept = []
    for token in ids:
        if token == EOS:
            break
        if token < SLOT0:
            kept.append(int(token))
    return kept
