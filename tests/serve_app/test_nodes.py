"""The shipped cluster and Serve files on make-believe nodes, with Ray's own autoscaler."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_replicas_land_on_nodes_of_their_own_type_which_come_and_go_with_the_load():
    """Router, text and vision each on their role's node; a second text node comes, then goes.

    In a process of its own, since it needs a Ray of its own.
    """
    command = [sys.executable, "-m", "benchmarks.nodes", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    found = json.loads(done.stdout)["results"]
    one_each = {"Router": ["router"], "TextTower": ["text"], "VisionTower": ["vision"]}
    one_node_each = {"head": 1, "router": 1, "text": 1, "vision": 1}
    assert (found["at_start"], found["nodes"]) == (one_each, one_node_each)
    assert found["outcomes"] == {"200": 8}
    assert found["under_load"] == one_each | {"TextTower": ["text", "text"]}
    assert (found["at_end"], found["nodes_at_end"]) == (one_each, one_node_each)
