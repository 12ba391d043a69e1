"""What a healed cluster must come to, judged by the records and by the simulated machines.

Owns the questions; asks no code under test but the replicated state.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.world import World

from aivailable.core.state.records import Deployment, Role, Status
from aivailable.core.state.state import State, state_digest


def unconverged(world: World, deployments: Callable[[World], str] | None = None) -> str:
    """What is missing still, in words; "" when everything is well. `deployments` judges which
    replicas there must be, where claims are not all that takes room."""
    return (
        _membership(world)
        or _agreement(world)
        or _leadership(world)
        or (_deployments if deployments is None else deployments)(world)
        or _workers(world)
        or _copies(world)
    )


def voters_wanted(members: int) -> int:
    """As core.cluster.voters says it: 1 below three, 3 for three or four, 5 from five on."""
    return 1 if members < 3 else 3 if members < 5 else 5


def _membership(world: World) -> str:
    states = world.states()
    if len(states) < len(world.names):
        return f"only {sorted(states)} have a session"
    for name, state in states.items():
        if state.cluster is None:
            return f"{name} has no cluster"
        if len(state.members) != len(world.names):
            return f"{name} knows {len(state.members)} members"
        down = [member.name for member in state.members.values() if member.down]
        if down:
            return f"{name} believes {sorted(down)} down"
    return ""


def _agreement(world: World) -> str:
    states = world.states()
    versions = {name: state.version for name, state in states.items()}
    if len(set(versions.values())) > 1:
        return f"versions differ: {versions}"
    if len({state_digest(state) for state in states.values()}) > 1:
        return "equal versions, different states"
    return ""


def _leadership(world: World) -> str:
    leader = world.leader()
    if leader is None:
        return "nobody leads"
    state = world.states()[leader]
    session = world.running[leader].peer.session
    assert session is not None
    control = state.control
    if control is None or (control.node, control.term) != (
        world.machine(leader).node,
        session.raft.term,
    ):
        return f"{leader} leads in term {session.raft.term}, but {control} controls"
    voters = sum(member.role is Role.VOTER for member in state.members.values())
    if voters != voters_wanted(len(state.members)):
        return f"{voters} voters of {len(state.members)} members"
    if len(session.raft.voters) != voters:
        return f"Raft has {len(session.raft.voters)} voters, the record {voters}"
    return ""


def _deployments(world: World) -> str:
    state = next(iter(world.states().values()))
    for name in sorted(state.replicas):
        replica = state.replicas[name]
        if replica.deployment not in state.deployments:
            return f"{name} outlives its deployment ({replica.status.value})"
        if replica.status is not Status.READY or replica.drain:
            return f"{name} is {replica.status.value}{' and drains' if replica.drain else ''}"
    for name in sorted(state.deployments):
        deployment = state.deployments[name]
        replicas = state.replicas_of(name)
        current = [r for r in replicas if r.generation == deployment.generation]
        if len(current) > deployment.replicas_max:
            return f"{name} has {len(current)} replicas"
        if len(current) < deployment.replicas_min and (place := _fitting(state, deployment)):
            return f"{name} has {len(current)} of {deployment.replicas_min}, and fits on {place}"
    return ""


def _fitting(state: State, deployment: Deployment) -> str:
    """A device with room for one more replica, counted from the records alone."""
    hosts = {replica.node for replica in state.replicas_of(deployment.name)}
    for node in sorted(state.inventories):
        if (
            node in hosts
            or node not in state.members
            or state.members[node].draining
            or f"{deployment.name}@{node}" in state.failures
        ):
            continue
        for device in state.inventories[node].devices:
            claimed = sum(
                claim.claim_bytes
                for replica in state.replicas.values()
                for claim in replica.claims
                if (replica.node, claim.device_id) == (node, device.device_id)
            )
            if device.total_bytes - claimed >= deployment.need_bytes:
                return f"{state.members[node].name}/{device.device_id}"
    return ""


def _workers(world: World) -> str:
    """The machines' own truth: exactly the placed replicas run, each once."""
    state = next(iter(world.states().values()))
    for name in world.names:
        node = world.machine(name).node
        placed = sorted(replica.replica for replica in state.replicas_on(node))
        living = world.running[name].launcher.living()
        running = sorted(worker.load.replica for worker in living)
        if placed != running:
            return f"{name} shall run {placed} and runs {running}"
        if any(not worker.ready for worker in living):
            return f"a worker of {name} loads"
    return ""


def _copies(world: World) -> str:
    """Deployed files lie on as many machines as was asked, and where the record says."""
    state = next(iter(world.states().values()))
    for name in sorted(state.deployments):
        deployment = state.deployments[name]
        if deployment.digest in state.models:
            wanted = min(deployment.copies, len(state.members))
            holders = state.copies.get(deployment.digest, ())
            if len(holders) < wanted:
                return f"{name} has {len(holders)} of {wanted} copies"
    for name in world.names:
        machine = world.machine(name)
        held = [digest for digest in sorted(state.models) if digest in machine.model_files]
        said = [digest for digest in sorted(state.copies) if machine.node in state.copies[digest]]
        if held != said:
            return f"{name} holds {len(held)} files, the record says {len(said)}"
    return ""
