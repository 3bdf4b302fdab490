"""The command line: `python -m generator`.

In: words. Out: an exit code: 0 done, 1 something differs or failed, 2 the command or a spec is
refused. Must not know: how a command is carried out (commands.py); that is imported when one is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

EXAMPLES = """examples:
  python -m generator build                        the whole catalogue into generated/
  python -m generator build --check                is generated/ current?
  python -m generator list                         every algorithm, with defaults and memory
  python -m generator show adamw                   one algorithm; --stage lowered: what is computed
  python -m generator verify adamw lion            the same bits on every backend?
  python -m generator new my_optimizer             a first spec and its test
  python -m generator build my_optimizer.py --backend torch --out my_package/
"""
STAGES = ("equations", "program", "checked", "lowered", "legal", "text")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    try:
        if not words:
            parser.print_help()
            return 0
        arguments, more = parser.parse_known_args(words)
        specs = getattr(arguments, "specs", None)
        if more and (not isinstance(specs, list) or any(w.startswith("-") for w in more)):
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        if isinstance(specs, list):
            specs += more  # argparse takes SPECs in one piece; these came after an option
    except SystemExit as end:
        return int(end.code or 0)
    return _carry_out(arguments)


def _carry_out(arguments: argparse.Namespace) -> int:
    from generator import commands
    from generator.terminal import complain

    try:
        code: int = getattr(commands, arguments.run)(arguments)
        sys.stdout.flush()
        return code
    except commands.MISTAKES as mistake:
        complain(str(mistake))
        return 2
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m generator",
        description="Optimizers and schedules, from equations to code for every framework.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    def backend(made: argparse.ArgumentParser, about: str) -> None:
        made.add_argument("--backend", metavar="B", action="append", default=[], help=about)

    build = command("build", "build", "Make packages from specs; write only what changed.")
    build.add_argument("specs", nargs="*", metavar="SPEC", help="a name or a path; all if none")
    backend(build, "a backend, or the import path of one; may be repeated; all if none")
    build.add_argument(
        "--out",
        metavar="DIR",
        help="the folder of the packages, or, with one --backend, the package itself",
    )
    build.add_argument("--chain", metavar="CHAIN", help='one program: "clip_by_global_norm > adamw"')
    build.add_argument("--name", metavar="CLASS", help="what the chain is called, ClippedAdamW")
    build.add_argument("--check", action="store_true", help="write nothing; 1 if files differ")

    listed = command("list", "list_", "Every algorithm of the catalogue.")
    listed.add_argument("--json", action="store_true", help="for programs")

    shown = command("show", "show_", "One algorithm, or one stage on its way to code.")
    shown.add_argument("spec", metavar="NAME", help="a name or a path")
    shown.add_argument("--stage", choices=STAGES, help="the program as it is at this stage")
    shown.add_argument("--backend", metavar="B", help="for legal and text; numpy if none")
    shown.add_argument("--latex", action="store_true", help="the equations in LaTeX")

    verified = command("verify", "verify", "Compare all backends and modes, bit for bit.")
    verified.add_argument("specs", nargs="*", metavar="SPEC", help="a name or a path; all if none")
    backend(verified, "a backend; may be repeated; all that are installed if none")
    verified.add_argument(
        "--steps", type=_count, default=20, metavar="N", help="%(default)s if none"
    )
    verified.add_argument("--jobs", type=_count, metavar="J", help="processes; 1 if none")
    verified.add_argument("--json", metavar="FILE", help="add the measurements to those in a file")
    verified.add_argument("--device", metavar="D", help="a device of the framework, such as cuda")
    verified.add_argument("--seed", type=_seed, default=0, metavar="S", help="%(default)s if none")

    started = command("new", "new", "Write a first spec and its test.")
    started.add_argument("name", metavar="NAME", help="what the algorithm is called, my_optimizer")
    started.add_argument("--out", metavar="FILE", help="the file of the spec; NAME.py if none")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or more")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
