"""/cluster/v1/nodes/NODE/drain: whom it means, and what the node is asked."""

from __future__ import annotations

import dataclasses

import aiohttp
import pytest
from fixtures.api_service import ADMIN, NODE, USER, FakeService
from fixtures.cluster_status import NAS, RIG2, lab

from aivailable.core.ids import key_hash, key_id
from aivailable.errors import RequestError
from aivailable.peer.api.cluster.nodes import find_member

ACTOR = f"operator:{key_id(key_hash(ADMIN))}"


async def post(
    http: aiohttp.ClientSession, path: str, key: str = ADMIN
) -> tuple[int, dict[str, object]]:
    headers = {"Authorization": f"Bearer {key}"}
    async with http.post(f"/cluster/v1/nodes/{path}", headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("wanted", [NODE, NODE[:4], "one"])
async def test_a_node_is_drained_and_serves_again(
    http: aiohttp.ClientSession, service: FakeService, wanted: str
) -> None:
    status, body = await post(http, f"{wanted}/drain")
    assert (status, body["name"], body["draining"]) == (200, "one", True)
    assert (await post(http, f"{wanted}/drain?force=1"))[0] == 200
    assert (await post(http, f"{wanted}/undrain"))[0] == 200
    assert service.members.drained == [
        (NODE, True, False, ACTOR),
        (NODE, True, True, ACTOR),
        (NODE, False, False, ACTOR),
    ]


async def test_only_an_admin_may(http: aiohttp.ClientSession, service: FakeService) -> None:
    for verb in ("drain", "undrain"):
        assert (await post(http, f"one/{verb}", USER))[0] == 403
    assert service.members.drained == []


async def test_a_refusal_keeps_its_words(http: aiohttp.ClientSession, service: FakeService) -> None:
    service.members.refuse = RequestError(409, "last_node", "with it goes dark: tiny")
    status, body = await post(http, "one/drain")
    assert (status, body["error"]["code"]) == (409, "last_node")  # type: ignore[index]


def test_an_unknown_node_names_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"members are rig1 .*, rig2 .*, nas") as caught:
        find_member(lab(), "rig9")
    assert (caught.value.status, caught.value.code) == (404, "unknown_node")


def test_three_characters_of_an_id_are_too_few_and_two_that_fit_are_named() -> None:
    assert find_member(lab(), RIG2[:4]) == RIG2
    with pytest.raises(RequestError, match="not a member"):
        find_member(lab(), RIG2[:3])
    status = lab()
    twins = tuple(dataclasses.replace(node, name="twin") for node in status.nodes[:2])
    with pytest.raises(RequestError, match=r"'twin' can be twin .aaaaaaaa., twin .bbbbb") as caught:
        find_member(dataclasses.replace(status, nodes=twins), "twin")
    assert (caught.value.status, caught.value.code) == (409, "ambiguous_node")


def test_a_whole_name_wins_over_the_beginning_of_an_id() -> None:
    status = lab()
    named = tuple(
        dataclasses.replace(node, name="bbbb") if node.node == NAS else node
        for node in status.nodes
    )
    assert find_member(dataclasses.replace(status, nodes=named), "bbbb") == NAS
