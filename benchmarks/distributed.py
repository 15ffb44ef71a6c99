"""Owns what several processes bring: two ranks of one thread beside two threads, and two hosts.

Without --link, on each shape of `training.py` two ranks of one thread and a process of two threads
take turns. With --link, two network namespaces stand for two hosts; `tc` limits the link between
them to so many Gbit/s each way, and each shape is trained with the number of tokens a rank at which
the exchange should take half of a step. With --sweep nothing is trained: it times the exchange of
two ranks against the size of the gradients, on one host or over the links. All need mpi4py; --link
needs root, Linux, and Open MPI.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training import SHAPES, Shape, random_ids, spread

NAMESPACES = ("rustgpt-a", "rustgpt-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
BYTES = 4  # of a parameter
SIZES = tuple(2**i for i in range(15, 30, 2))  # bytes of gradients: 32 KB to 512 MB
AT_LEAST = 5  # exchanges of each size that are timed
ON_ONE_HOST = ("mpiexec", "-n", "2")
# Run by Open MPI instead of ssh: AGENT [OPTION...] HOST COMMAND...
AGENT = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
name={0}; [[ "$1" == {3} ]] && name={1}
shift
exec ip netns exec $name unshare --uts bash -c "hostname $name; $*"
"""


def serve(shape: Shape, threads: int, texts: int, seconds: float) -> None:
    """Train with so many texts a step, for so long; print the medians of steps and exchanges."""
    import rustgpt
    from rustgpt.benchmark import Vocabulary
    from rustgpt.parallel.mpi import world
    from rustgpt.stepper import Stepper

    exchange = world()
    model = rustgpt.LLM(
        rustgpt.ModelConfig(
            embedding_dim=shape.dim, hidden_dim=4 * shape.dim, n_layers=shape.n_layers,
            n_heads=shape.n_heads, max_seq_len=shape.context, activation="gelu", norm="pre",
            attention_bias=True, output_bias=False, tie_embeddings=True,
        ),
        Vocabulary(shape.vocab_size),
    )  # fmt: skip
    config = rustgpt.TrainConfig(batch_size=texts, threads=threads, weight_decay=0.1, beta2=0.99)
    row = random_ids(shape, 1)[0]
    batch = [row[i % len(row)] for i in range(texts)]
    spent = [0.0]
    for name in ("meet", "sum_gradients", "gather_parameters"):
        setattr(exchange, name, timed(getattr(exchange, name), spent))
    steps, exchanges = [], []
    with Stepper(model, config, exchange=exchange) as stepper:
        stepper.step(batch, 1e-4)  # warms up
        began = exchange.now()
        while not steps or exchange.now() - began < seconds:
            spent[0], start = 0.0, time.perf_counter()
            stepper.step(batch, 1e-4)
            steps.append(time.perf_counter() - start)
            exchanges.append(spent[0])
    if exchange.is_first:
        step = statistics.median(steps)
        print(json.dumps({
            "parameters": model.n_parameters, "step": step,
            "exchange": statistics.median(exchanges),
            "tokens_per_second": texts * shape.context / step,
        }))  # fmt: skip
    exchange.leave(0)


def sweep(seconds: float) -> None:
    """Exchange gradients of each size for so long; print how long one exchange takes."""
    import numpy as np

    from rustgpt.layers.memory import aligned
    from rustgpt.parallel.mpi import world

    exchange = world()
    for size in SIZES:
        gradients, parameters = (aligned(size // BYTES, np.dtype("float32")) for _ in range(2))
        gradients[...] = parameters[...] = 0.0
        taken: list[float] = []
        exchange.meet("step")
        began = exchange.now()
        while len(taken) <= AT_LEAST or exchange.now() - began < seconds:
            start = time.perf_counter()
            exchange.meet("step", 0.0, 0)
            exchange.sum_gradients(gradients)
            exchange.total("norm", 0.0)
            exchange.gather_parameters(parameters)
            taken.append(time.perf_counter() - start)
        if exchange.is_first:
            found = {"bytes": size, "exchange": statistics.median(taken[1:])}  # the first warms up
            print(json.dumps({**found, "exchanges": len(taken) - 1}), flush=True)
    exchange.leave(0)


def timed(method: Any, spent: list[float]) -> Any:
    def call(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args)
        finally:
            spent[0] += time.perf_counter() - began

    return call


def run(command: Sequence[str], *arguments: object) -> list[Any]:
    """Return what `sweep` (of SECONDS) or `serve` (of more) prints."""
    own = [sys.executable, __file__, "--serve", *map(str, arguments)]
    env = {
        **os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path[1:]]),
    }  # fmt: skip
    done = subprocess.run(
        [*command, *own], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def threads_and_ranks(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return how fast two ranks are beside two threads, in turns."""
    texts = SHAPES[name].batch
    ranks, threads = [], []
    for _ in range(rounds):
        ranks += run(ON_ONE_HOST, name, 1, texts, seconds)
        threads += run([], name, 2, texts, seconds)
    pace = "tokens_per_second"
    ratios = [a[pace] / b[pace] for a, b in zip(ranks, threads, strict=True)]
    return {
        "shape": name, "ratio": statistics.median(ratios), "spread": spread(ratios),
        "tokens_per_second": statistics.median(one[pace] for one in ranks),
        "exchange_share": statistics.median(one["exchange"] / one["step"] for one in ranks),
    }  # fmt: skip


@contextmanager
def two_hosts(gbits: float) -> Iterator[list[str]]:
    """Make two hosts with a link between them; yield the command that starts a rank on each."""
    link = f"tbf rate {gbits}gbit burst 256kb latency 50ms"
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent"
        agent.write_text(AGENT.format(*NAMESPACES, *ADDRESSES))
        agent.chmod(0o755)
        try:
            for name in NAMESPACES:
                ip(f"netns add {name}")
            first, second = (f"eth0 netns {name}" for name in NAMESPACES)
            ip(f"link add {first} type veth peer name {second}")
            for name, address in zip(NAMESPACES, ADDRESSES, strict=True):
                ip(f"-n {name} addr add {address}/24 dev eth0")
                ip(f"-n {name} link set lo up")
                ip(f"-n {name} link set eth0 up")
                ip(f"netns exec {name} tc qdisc add dev eth0 root {link}")
            hosts = ",".join(f"{address}:1" for address in ADDRESSES)
            command = f"mpiexec --prtemca plm_ssh_agent {agent} --host {hosts} -n 2"
            yield [
                *f"ip netns exec {NAMESPACES[0]} env OMPI_MCA_pml=ob1".split(),
                *["OMPI_MCA_btl=tcp,self", "OMPI_MCA_btl_tcp_if_include=10.77.0.0/24"],
                *["unshare", "--uts", "bash", "-c"],
                f'hostname {NAMESPACES[0]}; {command} "$@"', "mpiexec",
            ]  # fmt: skip
        finally:
            for name in NAMESPACES:
                ip(f"netns del {name}", check=False)


def ip(arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments.split()], check=check)


def over_a_link(name: str, gbits: float, seconds: float) -> dict[str, Any]:
    """Return what the formula says of two hosts, and what is measured."""
    shape = SHAPES[name]
    (alone,) = run([], name, 1, shape.batch, seconds)
    exchange = formula(BYTES * alone["parameters"], gbits)
    half = alone["tokens_per_second"] * exchange
    texts = 2 * max(1, round(half / shape.context))
    with two_hosts(gbits) as command:
        (found,) = run(command, name, 1, texts, max(seconds, 6 * exchange))
    return {
        "shape": name, "gbits": gbits, "exchange_formula": exchange,
        "exchange": found["exchange"], "tokens_at_half": half, "texts_a_rank": texts // 2,
        "exchange_share": found["exchange"] / found["step"],
    }  # fmt: skip


def formula(size: int, gbits: float, n: int = 2) -> float:
    """Return the seconds that n ranks exchange so many bytes of gradients."""
    return 2 * (n - 1) / n * size / (gbits * 1e9 / 8)


def exchanges(gbits: float | None, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield how long the exchange takes by size, with the bandwidth each way."""
    if gbits is None:
        found = run(ON_ONE_HOST, seconds)
    else:
        with two_hosts(gbits) as command:
            found = run(command, seconds)
    for one in found:
        pace = one["bytes"] * 8 / one["exchange"] / 1e9  # sent by each of two: 2 * half of them
        said = {"exchange_formula": formula(one["bytes"], gbits)} if gbits else {}
        yield {"gbits": gbits, **one, **said, "gbits_each_way": pace}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="seed16,char,baby", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn (default: 5)")
    parser.add_argument("--link", type=float, nargs="+", metavar="GBITS", help="such as 1 0.1")
    parser.add_argument("--sweep", action="store_true", help="time the exchange alone, by size")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        *what, seconds = arguments.serve
        if what:
            serve(SHAPES[what[0]], int(what[1]), int(what[2]), float(seconds))
        else:
            sweep(float(seconds))
        return
    for gbits in (arguments.link or [None]) if arguments.sweep else ():
        for found in exchanges(gbits, arguments.seconds):
            print(json.dumps(found), flush=True)
    for name in () if arguments.sweep else arguments.shapes.split(","):
        for gbits in arguments.link or [None]:
            if gbits is None:
                found = threads_and_ranks(name, arguments.rounds, arguments.seconds)
            else:
                found = over_a_link(name, gbits, arguments.seconds)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
