"""One policy's own world: a fleet of simulated engines and the router before them.

Policies are compared side by side, at the same time, with the same requests: each has its stack, so
none feels another's load but through the machine they share, which all feel alike.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from lodestar_fast.demo.children import POLL_SECONDS, START_SECONDS, Child, Children
from lodestar_fast.sim.gpus import EngineSpec

HOST = "127.0.0.1"


@dataclass
class Stack:
    """A policy, its two processes, and where they answer."""

    policy: str
    engines: Child
    router: Child
    engine_urls: list[str]
    url: str  # data port of the router
    admin_url: str
    model: str  # that its engines serve
    labels: dict[str, str] = field(default_factory=dict)  # instance id -> "0 a30"


async def start_stacks(
    children: Children,
    client: aiohttp.ClientSession,
    policies: Sequence[str],
    fleet: str,
    specs: Sequence[EngineSpec],
    seed: int,
    engine_words: Sequence[str] = (),
    router_words: Sequence[str] = (),
) -> list[Stack]:
    """All of them, ready to be asked. The words: further options. Raises ChildError."""
    fleets = [
        await children.start(
            f"engines of {policy}",
            *("engine", "--fleet", fleet, "--host", HOST, "--port", "0", "--seed", str(seed)),
            *engine_words,
        )
        for policy in policies
    ]
    return list(
        await asyncio.gather(
            *(
                _start_router(children, client, policy, engines, specs, seed, router_words)
                for policy, engines in zip(policies, fleets, strict=True)
            )
        )
    )


async def _start_router(
    children: Children,
    client: aiohttp.ClientSession,
    policy: str,
    engines: Child,
    specs: Sequence[EngineSpec],
    seed: int,
    words: Sequence[str],
) -> Stack:
    found = await children.announced(engines, r'(?m)^\{"engines": .*\}$')
    listing = msgspec.json.decode(found[0])["engines"]
    urls = [str(engine["url"]) for engine in listing]
    router = await children.start(
        f"router of {policy}",
        *("serve", "--policy", policy, "--worker-urls", *urls, "--explain-headers"),
        *("--host", HOST, "--port", "0", "--admin-host", HOST, "--admin-port", "0"),
        *("--seed", str(seed), "--log-level", "warning", *words),
    )
    found = await children.announced(router, r"listening data=\S*?:(\d+) admin=\S*?:(\d+)")
    data, admin = (f"http://{HOST}:{port}" for port in found.groups())
    stack = Stack(policy, engines, router, urls, data, admin, listing[0]["model"])
    await _all_routable(client, stack, specs)
    return stack


async def _all_routable(
    client: aiohttp.ClientSession, stack: Stack, specs: Sequence[EngineSpec]
) -> None:
    """Wait until the router has found every engine healthy; then their labels are known."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                about = await get_json(client, stack.admin_url + "/workers")
                workers = about["workers"] if about else []
                if len(workers) == len(specs) and all(worker["healthy"] for worker in workers):
                    break
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise stack.router.error(
            f"did not find its engines healthy in {START_SECONDS:g} s"
        ) from None
    for worker in workers:
        number = stack.engine_urls.index(worker["url"].rstrip("/"))
        stack.labels[worker["id"]] = f"{number} {specs[number].gpu}"


async def get_json(client: aiohttp.ClientSession, url: str) -> Any:
    """A GET's JSON; None if there is no good answer."""
    try:
        async with client.get(url) as response:
            return await response.json() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError):
        return None


async def preemptions(client: aiohttp.ClientSession, stack: Stack) -> int | None:
    """How often the stack's engines took a request off the GPU again; None if they do not say."""
    total = 0.0
    for url in stack.engine_urls:
        try:
            async with client.get(url + "/metrics") as response:
                page = await response.text()
        except (aiohttp.ClientError, OSError):
            return None
        found = re.search(r"^vllm:num_preemptions(?:_total)?(?:\{[^}]*\})? (\S+)$", page, re.M)
        if found is None:
            return None
        total += float(found[1])
    return int(total)
