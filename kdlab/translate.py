"""The command `python -m kdlab.translate`: lines of text in, their translations by a model folder out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from kdlab import runtime
from kdlab.errors import ConfigError, UserError, did_you_mean

HELP = """Translates lines with a kdlab model folder.

  python -m kdlab.translate model=<folder> [option=value ...]

  model=<folder>        config.json, weights.safetensors and tokenizer/, as training leaves them (required)
  input=<file>          one sentence a line, UTF-8; .gz, .xz and .zst are unpacked   (standard input)
  output=<file>         appears when it is complete                                  (standard output)
  beam_size=<n>         hypotheses kept at every step; 1 is greedy                   (5)
  length_penalty=<x>    score = log-probability / length ** x                        (1.0)
  n_best=<n>            more than 1: lines of number, score, text, tab-separated     (1)
  batch_tokens=<n>      source tokens times beam_size a batch, padding counted       (4096)
  precision=<p>         fp32; bf16, about twice as fast; int8, faster still on CPUs  (fp32)
"""
# Lines that are sorted and translated together: enough for full batches, few enough to hold in memory.
WINDOW_LINES = 10_000
OPTIONS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "model": (Path, None),
    "input": (str, None),
    "output": (Path, None),
    "beam_size": (int, 5),
    "length_penalty": (float, 1.0),
    "n_best": (int, 1),
    "batch_tokens": (int, 4096),
    "precision": (str, "fp32"),
}


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Options by name, defaults filled in. Raises: ConfigError with every problem at once."""
    options = {name: default for name, (_, default) in OPTIONS.items()}
    problems = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not text:
            problems.append(f"'{argument}' is no option; write name=value, e.g. model=path/to/folder")
        elif name not in OPTIONS:
            problems.append(f"unknown option '{name}'{did_you_mean(name, OPTIONS) or '; see --help'}")
        else:
            try:
                options[name] = OPTIONS[name][0](text)
            except ValueError:
                kind = "a whole number" if OPTIONS[name][0] is int else "a number"
                problems.append(f"{name} is '{text}', but it counts; write {kind}, e.g. {name}={OPTIONS[name][1]}")
    if options["model"] is None and not any(argument.startswith("model=") for argument in arguments):
        problems.append("model is missing, and nothing translates without one; write model=<folder>")
    if options["precision"] not in ("fp32", "bf16", "int8"):
        problems.append(f"precision is '{options['precision']}', which is not known; write fp32, bf16 or int8")
    if problems:
        raise ConfigError(problems)
    return options


def run(options: dict[str, Any]) -> None:
    """Translates window by window."""
    from kdlab.decoding.beam import BeamConfig
    from kdlab.decoding.translator import Translator, input_lines

    config = BeamConfig(options["beam_size"], options["length_penalty"], n_best=options["n_best"])
    device = runtime.device("auto")
    translator = Translator.open(options["model"], precision=options["precision"], device=device)
    path = options["input"]
    total = sum(1 for _ in input_lines(path)) if path and Path(path).is_file() else None  # a pipe is read once
    lines, number = input_lines(path), 0
    with _output(options["output"]) as file, runtime.bar(what="translating", total=total) as shown:
        while window := list(islice(lines, WINDOW_LINES)):
            found = translator.translate(
                window, config, batch_tokens=options["batch_tokens"], progress=shown.update, first_line=number + 1
            )
            for candidates in found:
                number += 1
                for candidate in candidates:
                    fields = [str(number), f"{candidate.score:.6f}"] if options["n_best"] > 1 else []
                    file.write("\t".join([*fields, candidate.text]) + "\n")
            file.flush()


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes its name only when everything is written."""
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        yield sys.stdout
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which does not exist"
        raise UserError(f"output {path} {what}, so nothing can be written there; write the path of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 after a message where the user can mend it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        run(parse(arguments))
    except UserError as error:
        runtime.say(str(error))
        return 1
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
