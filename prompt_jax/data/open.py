"""Opens a task's examples for training: registry -> tokenised caches -> loader."""

from collections.abc import Callable, Sequence

from prompt_jax.data import cache, layout
from prompt_jax.data.loader import Data, Loader
from prompt_jax.data.vocabulary import Vocabulary


def open_tokens(data: Data, task: str, split: str, vocabulary: Vocabulary) -> cache.TokenCache:
    """The tokenised split of a task, as a run reads it; made if it is not there.

    Args:
        data: module, lengths, where caches lie.
        task: its name.
        split: one of its splits.
        vocabulary: the backbone's.

    Raises:
        UserError: see `cache.build`.
    """
    return cache.build(
        task,
        split,
        vocabulary,
        data.cache_dir,
        module=data.mixture_or_task_module,
        lengths=data.task_feature_lengths,
    )


def open_loader(
    data: Data,
    vocabulary: Vocabulary,
    slots: int,
    blocks: tuple[Sequence[int], int] = ((0,), 1),
    row_multiple: int = 1,
    first_slot: Callable[[str], int] = lambda task: 0,
) -> Loader:
    """The loader of a run.

    Args:
        data: task or mixture, split, lengths, layout.
        vocabulary: the backbone's.
        slots: P, slots written into each example's input.
        blocks: the blocks of rows that this process builds, and of how many
            (`Shardings.own_blocks`, `row_shards`).
        row_multiple: what the rows of a batch must divide by.
        first_slot: task -> number of the first of its examples' slots.

    Raises:
        UserError: unknown task or split, no examples, a prompt that does not fit.
    """
    tasks, rate = cache.get_tasks(data.mixture_or_task_name, data.mixture_or_task_module)
    sources = {name: open_tokens(data, name, data.split, vocabulary) for name in tasks}
    weights = {name: rate(name, len(source)) for name, source in sources.items()}
    return Loader(
        data,
        sources,
        slots={name: layout.slot_ids(slots, first_slot(name)) for name in tasks},
        weights=weights if len(sources) > 1 else None,
        vocabulary_size=vocabulary.size,
        blocks=blocks,
        row_multiple=row_multiple,
    )
