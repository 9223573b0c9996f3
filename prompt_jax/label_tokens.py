"""Labels as answers: their tokens, and what stands between two of them."""

from collections.abc import Callable, Sequence

from prompt_jax.errors import UserError


def tokens_of(
    labels: Sequence[str], separator: str, encode: Callable[[str], list[int]]
) -> tuple[list[list[int]], list[int]]:
    """The tokens of labels and of what is between them, as they are in a target.

    Encoded on its own a separator may have other tokens than within a target (";" begins a word
    there), and those a trained model never generates. So they are read off pairs: each label
    before itself and before the next one.

    Args:
        labels: texts.
        separator: between two labels; "": none.
        encode: text -> tokens, without EOS.

    Returns:
        Tokens of each label; tokens of the separator.

    Raises:
        UserError: the tokens of a pair are not the first label's, the separator's, and the second
            label's, with the same separator everywhere.
    """
    tokens = [list(encode(label)) for label in labels]
    between: list[int] = []
    if not separator:
        return tokens, between
    pairs = [(n, after) for n in range(len(labels)) for after in (n, (n + 1) % len(labels))]
    for first, second in pairs:
        text = labels[first] + separator + labels[second]
        whole = list(encode(text))
        found = whole[len(tokens[first]) : len(whole) - len(tokens[second])]
        between = between or found
        if not found or found != between or whole != tokens[first] + found + tokens[second]:
            raise UserError(
                f"label {labels[first]!r}: {text!r} has the tokens {whole}, which are not its "
                f"{tokens[first]}, the separator's {between or ''}, and then {tokens[second]}"
            )
    return tokens, between


def between(label: str, separator: str, encode: Callable[[str], list[int]]) -> list[int]:
    """The separator's tokens between two of the same label; nothing is checked."""
    size = len(encode(label))
    return encode(f"{label}{separator}{label}")[size:-size] if separator else []
