"""The script that sets a Jetson's mode of full power, under stand-ins for ``nvpmodel`` and the kernel's files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from shell import assert_clean

SCRIPT = Path(__file__).parents[1] / "compiler" / "deploy" / "power.sh"

# In the form of a board's /etc/nvpmodel.conf; which board has which modes is from memory, no board was asked.
NANO_SUPER = {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}
NX_SUPER = {0: "MAXN", 1: "10W", 2: "15W", 3: "25W", 4: "MAXN_SUPER"}
AGX = {0: "MAXN", 1: "15W", 2: "30W", 3: "50W"}
NANO = {0: "15W", 1: "7W"}

CONF = """# POWER_MODEL ID=9 NAME=MAXN is how one is defined
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
{modes}
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""
# Keeps the mode in a file; asks for a restart, or fails, where the test says so.
NVPMODEL = """#!/bin/sh
here=$(dirname "$0")
case $1 in
  -q) echo "NVPM WARN: fan mode is not set!"; sed -n "s/^$(cat "$here/mode") /NV Power Mode: /p" "$here/names"
      cat "$here/mode" ;;
  -m) echo "$2" >> "$here/asked"
      if [ -e "$here/fails" ]; then echo "NVPM ERROR: Error opening /var/lib/nvpmodel: 13"; exit 255; fi
      if [ -e "$here/restart" ]; then
        echo "DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"; read -r answer || exit 0; fi
      echo "$2" > "$here/mode" ;;
  *) exit 2 ;;
esac
"""


class Board:
    """A folder for PATH, the configuration, and the kernel's files."""

    def __init__(self, folder: Path, modes: dict[int, str], present: int) -> None:
        self.bin, self.conf, self.sys = folder / "bin", folder / "nvpmodel.conf", folder / "sys"
        self.bin.mkdir()
        self.conf.write_text(
            CONF.format(modes="\n".join(f"< POWER_MODEL ID={number} NAME={name} >" for number, name in modes.items()))
        )
        (self.bin / "names").write_text("".join(f"{number} {name}\n" for number, name in modes.items()))
        (self.bin / "mode").write_text(f"{present}\n")
        self.program("nvpmodel", NVPMODEL)
        self.program("jetson_clocks", '#!/bin/sh\ntouch "$(dirname "$0")/clocks"\n')
        for name, files in {
            "devices/system/cpu/cpufreq/policy0": {"scaling_cur_freq": "729600", "scaling_max_freq": "1728000"},
            "class/devfreq/17000000.gpu": {"cur_freq": "1020000000", "max_freq": "1020000000"},
            "class/thermal/thermal_zone0": {"type": "cpu-thermal", "temp": "48312"},
            "class/thermal/thermal_zone1": {"type": "gpu-thermal"},  # asleep: no answer
            "class/thermal/thermal_zone2": {"type": "cold", "temp": "-5500"},
        }.items():
            (self.sys / name).mkdir(parents=True)
            for file, value in files.items():
                (self.sys / name / file).write_text(f"{value}\n")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "NVPMODEL_CONF": str(self.conf),
            "SYSFS": str(self.sys),
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def asked(self) -> list[str]:
        """Return the modes that were asked for."""
        file = self.bin / "asked"
        return file.read_text().split() if file.exists() else []


STATE: dict[str, Any] = {
    "clocks": {
        "cpu-0": {"mhz": 729.6, "max_mhz": 1728},
        "17000000.gpu": {"mhz": 1020, "max_mhz": 1020},
    },
    "temperatures": {"cpu-thermal": 48.312, "cold": -5.5},
}


def test_script_is_clean() -> None:
    assert_clean(SCRIPT)


@pytest.mark.parametrize(
    ("modes", "present", "number", "name"),
    [
        (NANO_SUPER, 0, 2, "MAXN_SUPER"),
        (NANO_SUPER, 3, 2, "MAXN_SUPER"),
        (NX_SUPER, 2, 4, "MAXN_SUPER"),
        (dict(reversed(NX_SUPER.items())), 2, 4, "MAXN_SUPER"),
        (AGX, 1, 0, "MAXN"),
        ({0: "10W", 7: "MAXN_40W"}, 0, 7, "MAXN_40W"),
    ],
)
def test_the_mode_is_chosen_by_its_name(
    modes: dict[int, str], present: int, number: int, name: str, tmp_path: Path
) -> None:
    board = Board(tmp_path, modes, present)
    done = board.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert board.asked() == [str(number)]
    assert (board.bin / "clocks").exists()
    first, state = done.stdout.splitlines()
    assert first == f"power mode {name} ({number})"
    assert json.loads(state) == {"mode": name, "mode_id": number, **STATE}


def test_the_mode_that_is_set_already_is_left_alone(tmp_path: Path) -> None:
    board = Board(tmp_path, NANO_SUPER, 2)
    assert board.run().returncode == 0
    assert board.asked() == []


def test_no_mode_of_that_name(tmp_path: Path) -> None:
    board = Board(tmp_path, NANO, 1)
    done = board.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"power.sh: no mode called MAXN in '{board.conf}' (there are: 15W (0), 7W (1)): choose the highest yourself: "
        "sudo nvpmodel -m NUMBER\n"
    )
    assert board.asked() == []


def test_what_nvpmodel_did_is_checked(tmp_path: Path) -> None:
    board = Board(tmp_path, NANO_SUPER, 0)
    (board.bin / "restart").touch()
    done = board.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the mode is 15W, not MAXN_SUPER: run this with sudo, or, if it wants a restart: sudo nvpmodel -m 2" in (
        done.stderr
    )
    (board.bin / "fails").touch()
    done = board.run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == ("power.sh: nvpmodel -m 2: NVPM ERROR: Error opening /var/lib/nvpmodel: 13")


def test_clocks_that_stay_are_said(tmp_path: Path) -> None:
    board = Board(tmp_path, AGX, 0)
    board.program("jetson_clocks", "#!/bin/sh\nexit 1\n")
    done = board.run()
    assert done.returncode == 0
    assert done.stderr == "power.sh: jetson_clocks failed: clocks move with the load; run this with sudo\n"


def test_no_jetson(tmp_path: Path) -> None:
    board = Board(tmp_path, AGX, 0)
    (board.bin / "nvpmodel").unlink()
    done = board.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "power.sh: nvpmodel was not found: this isn't a Jetson, nothing was set\n"
    assert json.loads(board.run("-j").stdout) == {"mode": None, "mode_id": None, **STATE}
    (board.bin / "jetson_clocks").unlink()
    empty = {**board.environment, "SYSFS": str(tmp_path / "nothing")}
    done = subprocess.run(["sh", str(SCRIPT), "-j"], env=empty, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"mode": None, "mode_id": None, "clocks": {}, "temperatures": {}}


def test_the_state_is_read_without_a_change(tmp_path: Path) -> None:
    board = Board(tmp_path, NANO_SUPER, 1)
    assert json.loads(board.run("-j").stdout) == {"mode": "25W", "mode_id": 1, **STATE}
    assert board.asked() == []
    assert not (board.bin / "clocks").exists()
    assert board.run("-x").returncode == 2
    assert "sudo sh power.sh" in board.run("-h").stdout
