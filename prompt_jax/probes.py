"""Evaluators of pretraining: does the decoder read the encoder, and can a prompt steer it?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax import losses
from prompt_jax.assemble import Method, Model
from prompt_jax.data.loader import Data
from prompt_jax.data.open import open_loader
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.parts.trainable import Adafactor, Trainable
from prompt_jax.step import INIT, init_state, jit_train_step, purpose_key


@dataclasses.dataclass(frozen=True)
class LossGap:
    """Loss with each example's own encoder input, and with another example's.

    The gap says how much the decoder reads the encoder: a decoder that is only a language model
    has none, and no prompt in the encoder can steer it.

    Attributes:
        batches: how many batches of the split.
    """

    batches: int = 8

    def __call__(self, context, params, split: str) -> dict[str, float]:
        """{"loss", "shuffled_loss", "gap", "token_accuracy", "negative_loss"}; nats a token."""
        run = context.run
        slots = run.method.slots
        data = dataclasses.replace(run.data, split=split, packing=False)
        blocks = context.shardings.own_blocks, context.shardings.row_shards
        loader = context.once(
            ("gap", repr(data), slots),
            lambda: open_loader(
                data, context.opened.vocabulary, slots, blocks, first_slot=run.method.first_slot
            ),
        )
        whole = context.shardings.replicated
        make = lambda: jax.jit(self._sums(context.model), out_shardings=whole)  # noqa: E731
        evaluate = context.once("gap step", make)
        sums = np.zeros(4)
        for step in range(self.batches):
            batch, _ = loader.batch(step)
            sums += np.asarray(jax.device_get(evaluate(params, context.shardings.put_batch(batch))))
        loss, shuffled, correct = sums[:3] / max(sums[3], 1.0)
        return {
            "loss": loss,
            "shuffled_loss": shuffled,
            "gap": shuffled - loss,
            "token_accuracy": correct,
            "negative_loss": -loss,
        }

    def _sums(self, model: Model):
        term = losses.CrossEntropy(z_loss=0.0)
        losses.check((term,), model.method.head)

        def sums(params, batch):
            outputs = model.outputs(params, batch)
            names = ("encoder_input_tokens", "encoder_segment_ids")
            rolled = {**batch, **{name: jnp.roll(batch[name], 1, axis=0) for name in names}}
            counts = losses.counts(outputs, batch)
            shuffled = term.sum(model.outputs(params, rolled), batch)
            return jnp.stack(
                [term.sum(outputs, batch), shuffled, counts["correct"], counts["targets"]]
            )

        return sums


@dataclasses.dataclass(frozen=True)
class PromptProbe:
    """Accuracy of a short prompt tuning on the weights as they are now.

    Attributes:
        task: a classification task.
        steps: of prompt tuning.
        length: P.
        batch_size: examples a step.
        task_feature_lengths: own tokens of an example.
        examples: of the validation split.
    """

    task: str
    steps: int = 100
    length: int = 10
    batch_size: int = 32
    task_feature_lengths: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"inputs": 64, "targets": 8}
    )
    examples: int = 250

    def __call__(self, context, params, split: str) -> dict[str, float]:
        """{"probe/TASK": accuracy}."""
        from prompt_jax import evaluate

        method = Method(
            "probe",
            bank=PromptBank(self.length),
            inject=EncoderSlots(),
            trainable=Trainable(optimizer=Adafactor()),
        )
        data = Data(
            self.task,
            task_feature_lengths=self.task_feature_lengths,
            batch_size=self.batch_size,
            cache_dir=context.run.data.cache_dir,
        )
        run = dataclasses.replace(context.run, method=method, data=data)
        model = Model(context.model.network, method, context.model.fetch)
        opened = dataclasses.replace(context.opened, params=params)
        blocks = context.shardings.own_blocks, context.shardings.row_shards
        loader = context.once(
            ("probe", self.task),
            lambda: open_loader(data, opened.vocabulary, self.length, blocks),
        )
        key = purpose_key(jax.random.key(0), 0, INIT)
        prompt = model.init_prompt(key, opened.init_vocabulary(model))
        optimizer = method.trainable.build(prompt)
        state = context.shardings.put_whole(init_state(prompt, optimizer, 0))
        step_fn = context.once(
            ("probe step", self.task), lambda: jit_train_step(model, optimizer, 1)
        )
        for step in range(self.steps):
            batch, _ = loader.batch(step)
            state, _ = step_fn(state, params, context.shardings.put_batch(batch))
        inner = context.once(
            ("probe context", self.task),
            lambda: evaluate.Context(run, model, opened, context.shardings, {}),
        )
        metrics = evaluate.TaskMetrics(limit=self.examples)
        found = metrics(inner, {**params, **state.trainable}, "validation")
        return {f"probe/{self.task}": found["accuracy"]}
