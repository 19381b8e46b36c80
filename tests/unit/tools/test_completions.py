# SPDX-License-Identifier: Apache-2.0
"""The completions: bash runs its own; the others name every command and option."""

import subprocess

import pytest

from tools import completions
from tools.programs import GUEST, HOST, PROGRAMS, Program, arguments, commands

# What bash does when a user types words and presses the tabulator.
TAB = """
eval "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/') "$1" "${@: -1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(program: Program, *words: str) -> set[str]:
    """Return what bash offers behind these words, the last of which is incomplete."""
    script = completions.script(program, "bash")
    done = subprocess.run(
        ["bash", "-c", TAB, "bash", script, program.name, *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_bash_completes_commands() -> None:
    assert completed(HOST, "re") == {"remove", "reload", "restart"}


def test_bash_completes_the_options_of_a_command() -> None:
    assert completed(GUEST, "run", "--ta") == {"--tap"}


def test_bash_completes_the_values_of_an_option() -> None:
    offered = completed(HOST, "qemu-args", "net0", "--role", "")
    assert offered == {"master", "slave"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.name)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_has_every_command_and_option(program: Program, shell: str) -> None:
    text = completions.script(program, shell)
    for command in commands(program.parser):
        assert command.name in text
        for action in arguments(command.parser):
            for option in action.option_strings:
                spelt = option.lstrip("-") if shell == "fish" else option
                assert spelt in text, (command.name, option)


def test_fish_knows_which_values_are_files_and_which_are_words() -> None:
    text = completions.script(GUEST, "fish")
    assert "-l socket -r -F " in text
    assert "-l bind -x -a 'auto kmod vfio uio sysfs' " in text
    assert "-l json -d " in text
