"""`python -m benchmarks [--json FOLDER]`: every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("--json", metavar="FOLDER", type=Path, help="also write every measurement there, a file each")
folder: Path | None = parser.parse_args().json
for name in ("research", "broker", "broker_designs", "guard_cost", "guard_latency", "guard_packing"):
    arguments = ["--json", str(folder / f"{name}.json")] if folder else []
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)
