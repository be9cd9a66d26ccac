"""Do replicas land on nodes of their own type, which come and go with the load?

    python -m benchmarks.nodes [--json]

Puts the shipped cluster.yaml's node types and the shipped Serve config on make-believe nodes of
this machine, loads the text tower until it has a second node, and waits until that goes. Ray's own
autoscaler starts and stops the nodes.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import report
from benchmarks.harness.callers import ask, asking
from benchmarks.harness.fake_cluster import LIMIT_S, deploy, nodes, placements, shipped_cluster
from benchmarks.harness.outcomes import tally
from benchmarks.harness.sampler import seconds_until

REQUESTS = 8  # at once: more would take processor time from the nodes that start
MIX = "8 texts of 300 words"


def measure() -> dict[str, Any]:
    """Deploy, load, and wait until the second node has come and gone."""
    callers = "--callers", str(REQUESTS)
    with shipped_cluster() as (url, _):
        placed_s = deploy({"text": (1, 2), "vision": (1, 1)})
        results: dict[str, Any] = {"placed_s": placed_s}
        results |= {"at_start": placements(), "nodes": nodes()}
        # The load goes on until the second replica is there, however slow this machine is.
        with asking(url, [MIX], 2 * LIMIT_S, *callers):
            results["second_text_node_s"] = seconds_until(lambda: nodes()["text"] == 2, LIMIT_S)
            results["second_replica_s"] = seconds_until(
                lambda: placements().get("TextTower", []) == ["text", "text"], LIMIT_S
            )
            results["under_load"] = placements()
        requests = ask(url, MIX, LIMIT_S, *callers, "--requests", str(REQUESTS))
        results["outcomes"] = tally(requests)
        results["back_to_one_s"] = seconds_until(lambda: nodes()["text"] == 1, LIMIT_S)
        return results | {"at_end": placements(), "nodes_at_end": nodes()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = report.command(__doc__).parse_args(arguments)
    report.write(options, measure(), report.show_values)


if __name__ == "__main__":
    main()
