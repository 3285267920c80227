"""Command-line flags made from the settings' dataclasses, the one source of truth.

Every field of `DataConfig`, `ModelConfig` and `TrainConfig` is a flag of the same name: numbers and
strings as they are, tuples as comma lists, bools as --x and --nox. Flags can stand in flagfiles,
which may include others by --flagfile (paths as seen from the current folder); later ones win.
Nothing here imports TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import flags

from data.files import whole_file
from trainer.config import Params

_HELP_FLAGS = {
    "help": "Show all flags with their meaning and leave.",
    "helpshort": "Show all flags with their defaults and leave.",
}
_SCALAR_PARSERS = {
    int: flags.IntegerParser,
    float: flags.FloatParser,
    str: flags.ArgumentParser,
}


class TupleParser(flags.ArgumentParser):
    """Parses a comma list into a tuple whose items all have one type."""

    def __init__(self, item_parser: flags.ArgumentParser):
        super().__init__()
        self._item_parser = item_parser
        self.syntactic_help = f"a comma list of {item_parser.flag_type()}s"

    def parse(self, argument: str | tuple) -> tuple:
        """Turns `"1,2"` into `(1, 2)` and an empty text into an empty tuple."""
        if isinstance(argument, tuple):
            return argument
        items = [item.strip() for item in argument.split(",")] if argument.strip() else []
        return tuple(self._item_parser.parse(item) for item in items)

    def flag_type(self) -> str:
        """What messages call values of this kind."""
        return self.syntactic_help


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of one of the dataclasses, seen as a flag."""

    room: str
    name: str
    type: type
    default: object
    help: str


def list_settings() -> Iterator[Setting]:
    """Yields the settings of all rooms in the order of their dataclasses."""
    for room, config in _rooms().items():
        types = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            yield Setting(
                room, field.name, types[field.name], field.default, field.metadata["help"]
            )


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every setting."""
    for setting in list_settings():
        if setting.type is bool:
            flags.DEFINE_boolean(
                setting.name, setting.default, setting.help, flag_values=flag_values
            )
        else:
            flags.DEFINE(
                _make_parser(setting.type),
                setting.name,
                setting.default,
                setting.help,
                flag_values=flag_values,
                serializer=_FlagfileSerializer(),
            )


def params_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Params:
    """Builds `Params` from parsed flags; raises the dataclasses' ValueError for a bad setting."""
    return Params(
        **{
            room: config(**{f.name: flag_values[f.name].value for f in dataclasses.fields(config)})
            for room, config in _rooms().items()
        }
    )


def parse_flags(argv: Sequence[str], description: str = "") -> Params:
    """Parses a command line (`argv[0]` is the program's name) into `Params`.

    Exits with status 0 after --help and --helpshort, and with status 2 and one sentence on stderr
    when a flag is unknown or its value cannot be used.
    """
    return parse_flags_with(argv, description, lambda flag_values: None)[0]


def parse_flags_with(
    argv: Sequence[str], description: str, define_more: Callable[[flags.FlagValues], None]
) -> tuple[Params, flags.FlagValues]:
    """The same for a program with flags of its own, which `define_more` defines."""
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    settings = set(flag_values)
    define_more(flag_values)
    own = [flag_values[name] for name in flag_values if name not in settings]
    for name, meaning in _HELP_FLAGS.items():
        flags.DEFINE_boolean(name, False, meaning, flag_values=flag_values)
    try:
        rest = flag_values(list(argv))[1:]
        if flag_values["help"].value or flag_values["helpshort"].value:
            print(format_help(description, short=not flag_values["help"].value, own=own))
            raise SystemExit(0)
        if rest:
            raise ValueError(f"{rest[0]!r} is not a flag: flags look like --name=value.")
        return params_from_flags(flag_values), flag_values
    except (flags.Error, ValueError) as error:
        refuse_flags(str(error))


def refuse_flags(sentence: str) -> typing.NoReturn:
    """Says on stderr what is wrong with the flags and exits with status 2."""
    print(f"error: {sentence.removeprefix('ERROR:: ')}", file=sys.stderr)
    raise SystemExit(2)


def write_flagfile(params: Params, path: str) -> None:
    """Writes every setting as a flagfile that reproduces `params`, all of it or nothing."""
    lines = ["# All settings of the run in this folder; --flagfile takes this file."]
    for setting in list_settings():
        value = getattr(getattr(params, setting.room), setting.name)
        lines.append(_format_flag(setting.name, value))
    with whole_file(path) as file:
        file.write("\n".join(lines) + "\n")


def format_help(description: str, short: bool = False, own: Iterable[flags.Flag] = ()) -> str:
    """Lists a program's own flags and then all settings, room by room.

    Args:
      description: what the program is for.
      short: leaves the flags' meaning out.
      own: flags that are no settings.
    """
    rooms = {"this program": [(flag.name, flag.default, flag.help) for flag in own]}
    for setting in list_settings():
        entry = setting.name, setting.default, setting.help
        rooms.setdefault(setting.room, []).append(entry)
    lines = [description, "", "Flags (each can stand in a file given by --flagfile=FILE):"]
    for room, entries in rooms.items():
        lines += ["", f"{room}:"] if entries else []
        for name, default, meaning in entries:
            lines.append(f"  {_format_flag(name, default)}")
            if not short:
                lines += textwrap.wrap(
                    meaning, 92, initial_indent=" " * 6, subsequent_indent=" " * 6
                )
    return "\n".join(lines)


class _FlagfileSerializer(flags.ArgumentSerializer):
    """Writes values so that the parsers above read the same values again."""

    def serialize(self, value: object) -> str:
        return _format_value(value)


def _rooms() -> dict[str, type]:
    """The dataclass of each part of `Params`."""
    return typing.get_type_hints(Params)


def _make_parser(kind: type) -> flags.ArgumentParser:
    if typing.get_origin(kind) is tuple:
        return TupleParser(_SCALAR_PARSERS[typing.get_args(kind)[0]]())
    return _SCALAR_PARSERS[kind]()


def _format_value(value: object) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _format_flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={_format_value(value)}"
