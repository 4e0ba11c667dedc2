"""Is everything in order on this machine? python -m experiments.doctor

What it prints is what a bug report should contain.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments import cli
from tinygpt_jax.devices import Device


@dataclass(frozen=True)
class Arguments:
    """Look at versions, device, memory and folders, and try out training and checkpoints for a second.

    Each problem is printed with its remedy. The exit code is 0 where there is none, else 1.
    """

    device: Device = "auto"  # gpu: it is a problem where there is none
    json: bool = False  # print one JSON object


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, examine, and print."""
    arguments = cli.parse(Arguments, argv)

    from tinygpt_jax.doctor import examine

    findings = []
    for finding in examine(arguments.device):
        findings.append(finding)
        if not arguments.json:
            print(f"{'PROBLEM' if finding.problem else 'ok':<9}{finding.name:<20}{finding.value}", flush=True)
            if finding.problem:
                print(f"{'':<9}{finding.problem}\n{'':<9}remedy: {finding.remedy}", flush=True)
    problems = sum(bool(finding.problem) for finding in findings)
    if arguments.json:
        print(json.dumps({"problems": problems, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        print(f"{problems} problem{'s' * (problems > 1)}" if problems else "everything is in order")
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
