"""`prompt-jax VERB`: parses, imports lazily, calls one function, turns exceptions into exit codes.

0 done; 2 the user's input; 3 the run failed; 130 Ctrl-C and 143 SIGTERM, saved and restartable.
PROMPT_JAX_DEBUG=1 shows tracebacks.
"""

import argparse
import dataclasses
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from prompt_jax import environment, errors
from prompt_jax.errors import Interrupted, RunFailed, UserError, exit_code, nearest


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, with the nearest flag."""

    def error(self, message: str):
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            hint = "; " + nearest(message.split()[2].split("=")[0], flags)
        raise UserError(f"{self.prog}: {message}{hint}")


# --- flags ---


_GIN = ("configuration", "--gin.NAME=VALUE sets a macro, --gin.Class.field=VALUE a field")


def _gin_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(*_GIN)
    group.add_argument("--gin_file", action="append", default=[], metavar="FILE")
    group.add_argument("--gin_search_paths", default="", metavar="DIR,DIR")


def _use_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group(*_GIN)  # on top of MODEL_DIR/config.gin
    parser.add_argument("--model_dir", metavar="DIR", help="a finished run")
    parser.add_argument("--mixture_or_task", metavar="NAME", help="default: the run's own")
    parser.add_argument("--split", default=None, help="default: the task's test split, if any")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="FILE",
        help="a prompt; repeatable: every prompt answers, in shared batches",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="prompts of another backbone all the same"
    )
    parser.add_argument("--batch_size", type=_positive, default=None)
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    decode = parser.add_argument_group("decoding")
    modes = ("greedy", "beam", "sample", "rank", "trie")
    decode.add_argument("--decode", choices=modes, default=None)
    decode.add_argument("--max_decode_length", type=_positive, default=None, metavar="N")
    decode.add_argument("--beam_size", type=_positive, default=4, metavar="N")
    decode.add_argument(
        "--length_penalty", type=float, default=0.6, metavar="A", help="((5+len)/6)^A"
    )
    decode.add_argument("--length_penalty_form", choices=("t5x", "hf"), default="t5x")
    decode.add_argument("--temperature", type=float, default=1.0)
    decode.add_argument("--top_k", type=int, default=0, metavar="K", help="0: all")
    decode.add_argument("--top_p", type=float, default=1.0, metavar="P")
    decode.add_argument("--seed", type=int, default=0)
    decode.add_argument(
        "--label", action="append", default=[], metavar="TEXT",
        help="rank, trie: an answer to choose from; repeatable; default: the task's own",
    )  # fmt: skip
    decode.add_argument(
        "--separator", default="", metavar="TEXT", help="trie: between the labels of one answer"
    )


def _flags_run(parser: argparse.ArgumentParser) -> None:
    _gin_flags(parser)
    group = parser.add_argument_group("several processes", "where SLURM or a TPU pod says nothing")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=_positive, metavar="N")
    group.add_argument("--process_id", type=_index, metavar="I", help="which one this is, from 0")


def _flags_explain(parser: argparse.ArgumentParser) -> None:
    _gin_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="also write {name: [value, origin]}")


def _flags_eval(parser: argparse.ArgumentParser) -> None:
    _use_flags(parser)


def _flags_predict(parser: argparse.ArgumentParser) -> None:
    _use_flags(parser)
    parser.add_argument("--input", metavar="FILE", help="TSV or JSONL; default: the task's split")
    parser.add_argument("--output", metavar="FILE", help="JSONL; default: the terminal")


def _flags_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show examples of this task")
    parser.add_argument("--module", metavar="MODULE", help="your own tasks: a module or .py file")
    parser.add_argument("--split", default=None, help="default: train")
    parser.add_argument("--count", type=_positive, default=5, help="examples to show")
    parser.add_argument("--inputs", type=_positive, default=256, help="TASK_FEATURE_LENGTHS")
    parser.add_argument("--targets", type=_positive, default=32)
    parser.add_argument("--prompt_length", type=int, default=20)
    parser.add_argument("--layout", default="prefix")
    parser.add_argument(
        "--vocabulary", default="prompt_jax:micro_s", help="a backbone folder or .model"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the lengths of NAME as a PNG")
    parser.add_argument("--json", metavar="FILE", help="also write what is shown as JSON")


def _flags_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="source", action="append", default=[], metavar="PATH",
        help="a backbone (hf:DIR, hf:ORG/NAME, t5x:DIR, DIR) or a prompt; prompts: repeatable",
    )  # fmt: skip
    parser.add_argument("--to", metavar="PATH", help="its ending or prefix says the format")
    parser.add_argument("--vocabulary", metavar="FILE", help="a .model to put beside the weights")
    parser.add_argument(
        "--check", action="store_true", help="compare the logits of source and result"
    )
    parser.add_argument("--backbone", metavar="PATH", help="whose prompt it is")
    parser.add_argument("--base_model", metavar="NAME", help="named in a PEFT adapter")
    parser.add_argument(
        "--force", action="store_true", help="a prompt of another backbone all the same"
    )
    parser.add_argument("--json", metavar="FILE", help="also write what was done as JSON")


def _flags_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT",
        help="a prompt of any format, or a MODEL_DIR; several are also compared",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="PROMPT",
        help="similarities alone, of these and of every PROMPT",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", metavar="PATH", help="where neighbours are looked up; default: the run's"
    )
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="a .model or `byte`; default: the backbone's"
    )
    parser.add_argument("--png", metavar="FILE", help="draw the similarities; default: no figure")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")


def _flags_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group(*_GIN)  # e.g. --gin.T5Config.dtype="'bfloat16'"
    parser.add_argument("--model", default="t5_1_1_small", metavar="NAME", help="models/NAME.gin")
    parser.add_argument(
        "--only", default="", metavar="CASE,CASE",
        help="of memory, unpadded, sst2, mixed, checkpoint, start; default: all",
    )  # fmt: skip
    parser.add_argument("--repeat", type=_positive, default=7, help="timed blocks of a case")
    parser.add_argument("--json", metavar="FILE", help="also write the record as JSON")
    shape = parser.add_argument_group("sizes")
    shape.add_argument("--batch", type=_positive, default=16, help="examples, unpadded")
    shape.add_argument("--inputs", type=_positive, default=128, help="own tokens, unpadded")
    shape.add_argument("--prompt_length", type=_positive, default=100, help="slots, unpadded")
    shape.add_argument("--targets", type=_positive, default=8, help="target tokens, unpadded")
    shape.add_argument("--steps", type=_positive, default=3, help="steps of an unpadded block")
    shape.add_argument("--examples", type=_positive, default=32, help="examples a batch, sst2")
    shape.add_argument("--row", type=int, default=0, help="packed row, sst2; 0: chosen")
    shape.add_argument("--batches", type=_positive, default=8, help="batches of an sst2 block")
    shape.add_argument("--requests", type=_positive, default=256, help="requests, mixed")
    shape.add_argument("--starts", type=_positive, default=3, help="processes started")


def _flags_plan(parser: argparse.ArgumentParser) -> None:
    _gin_flags(parser)
    parser.add_argument(
        "--topology", metavar="NAME", default="cpu:1",
        help="v5e:4x4, v5e-16, v4-8, gpu:h200x8, cpu:8; several: NAME,NAME",
    )  # fmt: skip
    parser.add_argument(
        "--num_slices", type=_positive, default=1, metavar="N", help="slices of each topology"
    )
    parser.add_argument(
        "--rows", type=_positive, default=None, metavar="N", help="rows of a batch, if you know"
    )
    parser.add_argument(
        "--sizes", action="store_true",
        help="every T5 1.1 size on the smallest slice that fits; on each of several topologies",
    )  # fmt: skip
    parser.add_argument("--dtypes", default="bfloat16,float32", metavar="DTYPES", help="of --sizes")
    parser.add_argument(
        "--estimate", action="store_true", help="compile nothing: formulas, or what --cache holds"
    )
    parser.add_argument("--cache", metavar="DIR", help="keep what was compiled; go on from there")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as a page")
    parser.add_argument("--json", metavar="FILE", help="also write the plans as JSON")


def _flags_study(parser: argparse.ArgumentParser) -> None:
    _gin_flags(parser)
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--dry_run", action="store_true", help="show runs, fleets and what they cost")
    does.add_argument("--report", action="store_true", help="draw from the records that are there")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local")
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="every Nth fleet, from the Ith: one of N jobs"
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N",
        help="N processes, each with its share of the devices",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="also run again what has failed")
    parser.add_argument("--json", metavar="FILE", help="also write runs and fleets as JSON")
    # What `--workers` tells the processes that it starts.
    parser.add_argument("--of_workers", type=_positive, default=None, help=argparse.SUPPRESS)


def _flags_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="DIR", help="records, or folders of them; local or gs://"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE",
        help="also != < <= > >= and ~ (contains); repeatable: all must hold",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="A,B", help="default: point, status, metrics, cost; in files: all"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="--sort=-COLUMN: the largest first")
    parser.add_argument(
        "--list", action="store_true", help="every column, each with an example of its values"
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table instead of printing it")
    parser.add_argument("--parquet", metavar="FILE", help="likewise")
    parser.add_argument("--json", metavar="FILE", help="likewise; without --columns whole records")


def _positive(text: str) -> int:
    number = int(text) if text.lstrip("-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return number


def _index(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


# --- verbs ---


@dataclasses.dataclass(frozen=True)
class Verb:
    """A subcommand.

    Attributes:
        summary: one line for the help.
        flags: adds its flags to a parser.
        target: "module:function", imported when the verb is chosen.
        configured: gin files and flags are resolved and checked first: `args.resolved`.
        takes: what of the parsed flags the function gets.
        gin: takes `--gin.` flags.
    """

    summary: str
    flags: Callable[[argparse.ArgumentParser], None]
    target: str
    configured: bool = False
    takes: Callable[[argparse.Namespace], object] = lambda args: args
    gin: bool = True


def _with_vocabulary(args: argparse.Namespace) -> argparse.Namespace:
    """`tasks NAME`: the name looked up, then `prompt_jax:NAME` turned into a folder."""
    if args.name:
        from prompt_jax.ckpt.paths import resolve_path
        from prompt_jax.data.show import check_name

        check_name(args.name, args.module)
        if args.vocabulary != "byte":
            args.vocabulary = str(resolve_path(args.vocabulary))
    return args


VERBS = {
    "train": Verb(
        "train, or go on with, one run",
        _flags_run,
        "prompt_jax.train:run",
        configured=True,
        takes=lambda args: args.resolved,
    ),
    "eval": Verb("metrics on any task and split", _flags_eval, "prompt_jax.predict:eval_command"),
    "predict": Verb(
        "answers for a file or a split", _flags_predict, "prompt_jax.predict:predict_command"
    ),
    "explain": Verb(
        "every value and its origin",
        _flags_explain,
        "prompt_jax.explain:explain_command",
        configured=True,
    ),
    "convert": Verb(
        "backbones and prompts, from each format into each",
        _flags_convert,
        "prompt_jax.convert:convert_command",
        gin=False,
    ),
    "inspect": Verb(
        "a prompt's norms, neighbours and duplicates; similarities of several",
        _flags_inspect,
        "prompt_jax.inspect_prompt:inspect_command",
        gin=False,
    ),
    "study": Verb(
        "a grid of runs: train what is missing, draw the report",
        _flags_study,
        "prompt_jax.study.command:study_command",
    ),
    "bench": Verb(
        "what a run costs here: steps, mixed prompts, start, memory, checkpoints",
        _flags_bench,
        "prompt_jax.bench:bench_command",
    ),
    "plan": Verb(
        "what a run costs on a machine that is not here",
        _flags_plan,
        "prompt_jax.plan.command:plan_command",
    ),
    "ledger": Verb(
        "records of runs: select, list, write as a table",
        _flags_ledger,
        "prompt_jax.study.query:ledger_command",
        gin=False,
    ),
    "tasks": Verb(
        "list tasks, or show one",
        _flags_tasks,
        "prompt_jax.data.show:tasks_command",
        gin=False,
        takes=_with_vocabulary,
    ),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed flags; `gin` holds the "NAME=VALUE" of every `--gin.NAME=VALUE`.

    Raises:
        UserError: an unknown verb or flag, with the nearest valid one.
    """
    parser = _Parser(prog="prompt-jax", description="Prompt tuning of T5 across scales.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verb.flags(verbs.add_parser(name, help=verb.summary, allow_abbrev=False))
    if not argv:
        raise UserError(f"prompt-jax: give a verb: {', '.join(VERBS)}")
    if not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(f"prompt-jax: unknown verb {argv[0]!r}; {nearest(argv[0], VERBS)}")
    gin = [argument for argument in argv if argument.startswith("--gin.")]
    args, unknown = parser.parse_known_args([a for a in argv if a not in gin])
    if unknown:
        verbs.choices[args.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
    if gin and not VERBS[args.verb].gin:
        raise UserError(f"prompt-jax {args.verb} takes no --gin. flags: {gin[0]}")
    args.gin = [argument.removeprefix("--gin.") for argument in gin]
    if hasattr(args, "gin_search_paths"):
        args.gin_search_paths = [path for path in args.gin_search_paths.split(",") if path]
    return args


def run(argv: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
        UserError, RunFailed, Interrupted: as the verb does.
    """
    args = parse(argv)
    verb = VERBS[args.verb]
    if verb.configured:
        args.resolved = _configuration(args)
    module, _, function = verb.target.partition(":")
    getattr(importlib.import_module(module), function)(verb.takes(args))


def _configuration(args: argparse.Namespace):
    """The resolved configuration, its task's name looked up."""
    from prompt_jax.config import resolve
    from prompt_jax.data.show import check_name

    resolved = resolve(args.gin_file, args.gin, args.gin_search_paths)
    data = resolved.run.data
    check_name(data.mixture_or_task_name, data.mixture_or_task_module)
    flags = ("coordinator", "num_processes", "process_id")
    given = {name: getattr(args, name, None) for name in flags}
    return resolved.on_processes({k: v for k, v in given.items() if v is not None})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: arguments after the program's name; None takes them from the process.

    Returns:
        The exit code.
    """
    environment.prepare()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("prompt_jax").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _on_term)
    try:
        run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        if isinstance(error, BrokenPipeError):
            # The interpreter must not flush into what nobody reads either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            _complain(error)
        return code


def _on_term(signum, frame):
    raise Interrupted(signum, "terminated")


def _complain(error: BaseException) -> None:
    if os.environ.get("PROMPT_JAX_DEBUG") == "1":
        traceback.print_exception(error)
        return
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    if not isinstance(error, UserError | RunFailed | Interrupted | KeyboardInterrupt):
        text = f"{type(error).__name__}: {error}"
    print(errors.speaker + " ".join(text.splitlines()), file=sys.stderr)


def console() -> int:
    """The console script: the process as it is to be, then `main`."""
    environment.use_huge_pages()
    return main()


if __name__ == "__main__":
    sys.exit(console())
