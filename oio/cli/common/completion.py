# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Scripts that complete the commands of a program in bash, zsh and fish.

All three follow the same way. The words of the line that are neither options nor values of options are put
together as long as they name a command, or the beginning of one; what may follow stands in tables, written from
the commands themselves. Nothing is run and nobody is asked while a line is completed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oio.cli.common.describe import Argument, CommandText

# What the table of values holds for file names.
FILES = "@files"
# Values of placeholders that stand for one of a few things.
_TYPES = ("account", "beanstalkd", "meta0", "meta1", "meta2", "oioproxy", "rawx", "rdir", "redis")
_BASES = ("meta0", "meta1", "meta2")
_PLACEHOLDERS = {
    "<type>": _TYPES, "<srv_type>": _TYPES, "<service_type>": _BASES, "<volume_type>": ("rawx", "meta2"),
    "profiler": ("cProfile", "profile", "yappi"),
}  # fmt: skip
# Names under which the values of positionals stand: the first one, the second one…, and all that come later.
_POSITION, _LATER = "@{}", "@*"
_HELP_COLUMNS = 70


@dataclass(frozen=True)
class Tables:
    """What may follow, by words typed before; commands, options and values have one line of help each."""

    following: dict[str, dict[str, str]]
    options: dict[str, dict[str, str]]
    valued: dict[str, tuple[str, ...]]
    values: dict[str, dict[str, tuple[str, ...]]]
    global_options: dict[str, str]
    global_valued: tuple[str, ...]
    global_values: dict[str, tuple[str, ...]]


def make_tables(program: CommandText, commands: Iterable[CommandText]) -> Tables:
    """Tables of a program."""
    tables = Tables({}, {}, {}, {}, _options(program), _valued(program), _values(program))
    for command in commands:
        for length, word in enumerate(command.words):
            before = " ".join(command.words[:length])
            last = length == len(command.words) - 1
            text = _line(command.help) if last else f"{word} …"
            following = tables.following.setdefault(before, {})
            following[word] = text if last else following.get(word, text)
        tables.options[command.name] = {
            name: text for name, text in _options(command).items() if name not in tables.global_options
        }
        tables.valued[command.name] = _valued(command)
        tables.values[command.name] = _values(command)
    return tables


def _options(command: CommandText) -> dict[str, str]:
    return {name: _line(option.help) for option in command.options for name in option.names}


def _valued(command: CommandText) -> tuple[str, ...]:
    return tuple(name for option in command.options if option.takes_value for name in option.names)


def _values(command: CommandText) -> dict[str, tuple[str, ...]]:
    """Values of options, and those of positionals by their position."""
    found = {name: values for option in command.options if (values := _values_of(option)) for name in option.names}
    positionals = [(argument, _values_of(argument)) for argument in command.positionals]
    if any(argument.optional for argument, _values in positionals):
        # Whatever is typed may be any of them.
        everything = tuple(dict.fromkeys(value for _argument, values in positionals for value in values))
        return found | ({_LATER: everything} if everything else {})
    for number, (argument, values) in enumerate(positionals, start=1):
        # Those without values too: the later ones must not be taken for theirs.
        found[_LATER if argument.repeatable else _POSITION.format(number)] = values
    return found


def _values_of(argument: Argument) -> tuple[str, ...]:
    if argument.names and not argument.takes_value:
        return ()
    return argument.choices or ((FILES,) if argument.files else _PLACEHOLDERS.get(argument.metavar, ()))


def _line(text: str) -> str:
    """The first sentence of a help, short enough for a menu."""
    line = re.split(r"\.\s|\n\s*\n", text.strip(), maxsplit=1)[0].rstrip(".")
    line = " ".join(line.split())
    return line if len(line) <= _HELP_COLUMNS else line[: _HELP_COLUMNS - 1] + "…"


def bash_script(name: str, tables: Tables) -> str:
    """Script for bash 4 and later; needs no other package."""
    function = _function_name(name)
    return _fill(
        _BASH, name, tables,
        following=_cases(tables.following, lambda rows: f"REPLY={_quote(' '.join(rows))}"),
        options=_cases(tables.options, lambda rows: f"REPLY={_quote(' '.join(rows))}"),
        valued=_pattern_cases(tables.valued),
        values=_value_cases(tables, lambda values: f"REPLY={_quote(' '.join(values))}"),
        global_options=_quote(" ".join(tables.global_options)),
    ).replace("@F@", function)  # fmt: skip


def zsh_script(name: str, tables: Tables) -> str:
    """Script for zsh 5 and later: sourced, or as a file ``_NAME`` of ``fpath``."""
    def rows(found: dict[str, str]) -> str:
        # A colon ends the word.
        pairs = (f"{word}:{text}" if text else word for word, text in found.items())
        return f"reply=({' '.join(map(_quote, pairs))})"

    return _fill(
        _ZSH, name, tables,
        following=_cases(tables.following, rows),
        options=_cases(tables.options, rows),
        valued=_pattern_cases(tables.valued),
        values=_value_cases(tables, lambda values: f"reply=({' '.join(map(_quote, values))})"),
        global_options=rows(tables.global_options).removeprefix("reply="),
    ).replace("@F@", _function_name(name))  # fmt: skip


def fish_script(name: str, tables: Tables) -> str:
    """Script for fish 3 and later."""
    def rows(found: dict[str, str]) -> str:
        return "printf '%s\\t%s\\n' " + " ".join(
            f"{_fish_quote(word)} {_fish_quote(text)}" for word, text in found.items()
        )

    def cases(table: dict[str, dict[str, str]]) -> str:
        return "\n".join(
            f"        case {_fish_quote(key)}\n            {rows(found)}"
            for key, found in sorted(table.items()) if found
        )

    valued = "\n".join(
        f"        case {_fish_quote(key)}\n            contains -- $argv[2] {' '.join(names)}; and return 0"
        for key, names in sorted(tables.valued.items()) if names
    )  # fmt: skip
    values = "\n".join(
        f"        case {_fish_quote(f'{key}/{option}')}"
        + (f"\n            printf '%s\\n' {' '.join(found)}" if found else "")
        for key, option, found in _flat(tables)
    )
    return _fill(
        _FISH, name, tables, following=cases(tables.following), options=cases(tables.options), valued=valued,
        values=values, global_options=rows(tables.global_options),
    ).replace("@F@", _function_name(name))  # fmt: skip


SCRIPTS: dict[str, Callable[[str, Tables], str]] = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}


def _fill(template: str, name: str, tables: Tables, **parts: str) -> str:
    text = template.replace("@NAME@", name).replace("@GLOBAL_VALUED@", _or(tables.global_valued))
    text = text.replace("@GLOBAL_VALUED_WORDS@", " ".join(tables.global_valued)).replace("@FILES@", FILES)
    for key, part in parts.items():
        text = text.replace(f"@{key.upper()}@", part)
    return text


def _function_name(name: str) -> str:
    return "_" + re.sub(r"\W", "_", name)


def _or(names: Sequence[str]) -> str:
    return "|".join(names)


def _cases(table: dict[str, dict[str, str]], line: Callable[[dict[str, str]], str]) -> str:
    return "\n".join(f"    {_quote(key)}) {line(rows)} ;;" for key, rows in sorted(table.items()) if rows)


def _pattern_cases(table: dict[str, tuple[str, ...]]) -> str:
    return "\n".join(
        f"    {_quote(key)}) case $2 in {_or(names)}) return 0 ;; esac ;;"
        for key, names in sorted(table.items()) if names
    )


def _value_cases(tables: Tables, line: Callable[[tuple[str, ...]], str]) -> str:
    def pattern(name: str) -> str:
        return _quote(name.removesuffix("*")) + ("*" if name.endswith("*") else "")

    return "\n".join(f"    {pattern(f'{key}/{option}')}) {line(found)} ;;" for key, option, found in _flat(tables))


def _flat(tables: Tables) -> list[tuple[str, str, tuple[str, ...]]]:
    rows = [
        (key, option, found)
        for key, table in sorted(tables.values.items())
        for option, found in sorted(table.items(), key=lambda row: (row[0] == _LATER, row[0]))
    ]
    return rows + [("", option, found) for option, found in sorted(tables.global_values.items())]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_BASH = r"""# Completion of @NAME@ for bash. To have it in each session:
#   @NAME@ complete --shell bash > ~/.local/share/bash-completion/completions/@NAME@
# or in this one:  source <(@NAME@ complete --shell bash)

@F@_following() {
  case $1 in
@FOLLOWING@
    *) REPLY= ;;
  esac
}

@F@_options() {
  case $1 in
@OPTIONS@
    *) REPLY= ;;
  esac
}

@F@_takes_value() {
  case $2 in @GLOBAL_VALUED@) return 0 ;; esac
  case $1 in
@VALUED@
  esac
  return 1
}

@F@_values() {
  case $1 in
@VALUES@
    *) REPLY= ;;
  esac
}

@F@() {
  local REPLY word i cmd= value_of= position=1 current=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  # bash makes a word of its own of the sign in --option=value.
  [[ $current == = ]] && current=
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == = ]]; then
      [[ ${COMP_WORDS[i-1]} == -* ]] && value_of=${COMP_WORDS[i-1]}
    elif [[ -n $value_of ]]; then
      value_of=
    elif [[ $word == -* ]]; then
      @F@_takes_value "$cmd" "$word" && value_of=$word
    elif [[ -n $cmd || $word != help ]]; then
      @F@_following "$cmd"
      if [[ " $REPLY " == *" $word "* ]]; then
        cmd=${cmd:+$cmd }$word
      else
        ((position++))
      fi
    fi
  done
  if [[ ${COMP_WORDS[COMP_CWORD]} == = && ${COMP_WORDS[COMP_CWORD-1]} == -* ]]; then
    value_of=${COMP_WORDS[COMP_CWORD-1]}
  fi
  if [[ -n $value_of ]]; then
    @F@_values "$cmd/$value_of"
    [[ -n $REPLY ]] || @F@_values "/$value_of"
  elif [[ $current == -* ]]; then
    @F@_options "$cmd"
    REPLY="$REPLY "@GLOBAL_OPTIONS@
  else
    @F@_following "$cmd"
    word=$REPLY
    @F@_values "$cmd/@$position"
    REPLY="$word $REPLY"
  fi
  if [[ " $REPLY " == *" @FILES@ "* ]]; then
    compopt -o default 2>/dev/null
    return 0
  fi
  local IFS=$' \t\n'
  COMPREPLY=($(compgen -W "$REPLY" -- "$current"))
  return 0
}

complete -F @F@ @NAME@
"""

_ZSH = r"""#compdef @NAME@
# Completion of @NAME@ for zsh. To have it in each session, in a directory of fpath:
#   @NAME@ complete --shell zsh > ~/.zfunc/_@NAME@
# or in this one:  source <(@NAME@ complete --shell zsh)

@F@_following() {
  case $1 in
@FOLLOWING@
    *) reply=() ;;
  esac
}

@F@_options() {
  case $1 in
@OPTIONS@
    *) reply=() ;;
  esac
}

@F@_takes_value() {
  case $2 in @GLOBAL_VALUED@) return 0 ;; esac
  case $1 in
@VALUED@
  esac
  return 1
}

@F@_values() {
  case $1 in
@VALUES@
    *) reply=() ;;
  esac
}

@F@() {
  local -a reply found global_options
  local word i cmd= value_of= position=1 current=${words[CURRENT]}
  global_options=@GLOBAL_OPTIONS@
  for ((i = 2; i < CURRENT; i++)); do
    word=${words[i]}
    if [[ -n $value_of ]]; then
      value_of=
    elif [[ $word == -*=* ]]; then
      continue
    elif [[ $word == -* ]]; then
      @F@_takes_value "$cmd" "$word" && value_of=$word
    elif [[ -n $cmd || $word != help ]]; then
      @F@_following "$cmd"
      if (( ${reply[(I)$word|$word:*]} )); then
        cmd=${cmd:+$cmd }$word
      else
        (( position++ ))
      fi
    fi
  done
  if [[ -z $value_of && $current == -*=* ]]; then
    value_of=${current%%=*}
    compset -P 1 '*='
  fi
  if [[ -n $value_of ]]; then
    @F@_values "$cmd/$value_of"
    (( $#reply )) || @F@_values "/$value_of"
  elif [[ $current == -* ]]; then
    @F@_options "$cmd"
    found=($reply $global_options)
    _describe -o option found
    return
  else
    @F@_following "$cmd"
    found=($reply)
    (( $#found )) && _describe command found
    @F@_values "$cmd/@$position"
  fi
  # Zsh wants to know whether anything was found.
  (( $#reply )) || return $(( ! $#found ))
  if (( ${reply[(I)@FILES@]} )); then
    _files
  else
    compadd -a reply
  fi
}

if [[ ${funcstack[1]} == _@NAME@ ]]; then
  @F@ "$@"
else
  (( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit }
  compdef @F@ @NAME@
fi
"""

_FISH = r"""# Completion of @NAME@ for fish. To have it in each session:
#   @NAME@ complete --shell fish > ~/.config/fish/completions/@NAME@.fish
# or in this one:  @NAME@ complete --shell fish | source

function @F@_following
    switch $argv[1]
@FOLLOWING@
    end
end

function @F@_options
    switch $argv[1]
@OPTIONS@
    end
end

function @F@_takes_value
    contains -- $argv[2] @GLOBAL_VALUED_WORDS@; and return 0
    switch $argv[1]
@VALUED@
    end
    return 1
end

function @F@_values
    switch $argv[1]
@VALUES@
    end
end

function @F@_candidates
    set -l tokens (commandline -opc)
    set -l current (commandline -ct)
    set -l cmd
    set -l value_of
    set -l position 1
    for word in $tokens[2..-1]
        if set -q value_of[1]
            set -e value_of
        else if string match -q -- '-*=*' $word
            continue
        else if string match -q -- '-*' $word
            @F@_takes_value "$cmd" $word; and set value_of $word
        else if test -z "$cmd" -a "$word" = help
            continue
        else if contains -- $word (@F@_following "$cmd" | string replace -r '\t.*' '')
            set cmd (string trim "$cmd $word")
        else
            set position (math $position + 1)
        end
    end
    set -l prefix
    if not set -q value_of[1]; and string match -q -- '-*=*' $current
        set prefix (string replace -r '=.*' '=' -- $current)
        set value_of (string trim -r -c = -- $prefix)
    end
    if set -q value_of[1]
        set -l found (@F@_values "$cmd/$value_of")
        set -q found[1]; or set found (@F@_values "/$value_of")
        if contains -- @FILES@ $found
            __fish_complete_path (string replace -r '^-[^=]*=' '' -- $current)
        else if set -q found[1]
            printf "$prefix%s\n" $found
        end
    else if string match -q -- '-*' $current
        @F@_options "$cmd"
        @GLOBAL_OPTIONS@
    else
        @F@_following "$cmd"
        set -l found (@F@_values "$cmd/@$position")
        if contains -- @FILES@ $found
            __fish_complete_path $current
        else if set -q found[1]
            printf '%s\n' $found
        end
    end
end

complete -c @NAME@ -e
complete -c @NAME@ -f -a '(@F@_candidates)'
"""
